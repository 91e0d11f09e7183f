"""A step of every method asks the device for its work and never waits for it, so that it can be captured on a GPU. Seen on the CPU, operator by operator."""

import dataclasses
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from maga.capture import _held, may_be_captured
from maga.data import ForgetSplit, forget_class, forget_random, forget_subclass
from maga.methods.contract import METHODS
from maga.methods.noise import NoiseConfig
from maga.methods.restart import Distil
from maga.models import small_network
from maga.sources import digits
from maga.training import Examples, FitConfig, _Stepper, cross_entropy, fit

from .conftest import generator
from .test_methods import maker, random_transition

TASKS = {"class": lambda *s: forget_class(*s, "three"), "subclass": lambda *s: forget_subclass(*s, "three"), "random": lambda *s: forget_random(*s, 40)}
PAIRS = [(name, task) for task in TASKS for name, m in METHODS.items() if task in m.tasks]
WAITING = (
    *("_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "equal", "bincount"),
    *("lift_fresh", "multinomial", "is_nonzero", "item"),  # lift_fresh: a tensor of numbers that the host knows
)
OPERATORS = {  # in a step of small_cnn, at most over the tasks
    "maga": 104, "random_label": 104, "no_noise": 85, "retrain": 111, "retrain_head": 85, "finetune": 85, "l1_sparse": 179, "neggrad_plus": 112,
    "ssd": 107, "amnesiac": 86, "salun": 109, "unsir": 94, "bad_teacher": 94, "scrub": 118, "delete": 137, "trew": 118, "head_distillation": 46,
    "maga_soft": 118, "restart": 112, "eu_k": 78, "not_": 112, "random_mask": 112, "short_retrain": 112,
    "undo": 162, "directional_damage": 112,
}

TAUGHT = 162  # the same of restart with a teacher


class Wait(Exception):
    "An operator for whose result the host would wait."


class OnlyAsking(TorchDispatchMode):
    "Counts operators, and fails where one would wait for the device."

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.overloadpacket.__name__
        self.count += 1
        if name in WAITING:
            raise Wait(name)
        if name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"):
            for i in args[1]:
                if i is not None and i.dtype in (torch.bool, torch.uint8):
                    raise Wait(f"{name} with a boolean mask")
        return op(*args, **(kwargs or {}))


@pytest.fixture
def counted(monkeypatch):
    "The number of operators of every step but the first of a fit, which prepares what lasts: the normalisation's constants, momentum."
    counts, step, prepared = [], _Stepper.__call__, []

    def asking(stepper, *inputs):
        perturbed = stepper.examples.perturbation
        assert may_be_captured(stepper.objective, stepper.after_step, None if perturbed is None else perturbed.apply)
        if stepper not in prepared:
            prepared.append(stepper)
            return step(stepper, *inputs)
        held = _held(stepper.model)
        with OnlyAsking() as mode:
            out = step(stepper, *inputs)
        assert _held(stepper.model) == held  # else Python changes the network, and no step is captured
        counts.append(mode.count)
        return out

    monkeypatch.setattr(_Stepper, "__call__", asking)
    return counts


def small_split(task: str) -> ForgetSplit:
    train, test = digits()
    return TASKS[task](train.subset(torch.arange(300)), test.subset(torch.arange(60)))


def small_config(name: str, task: str, split: ForgetSplit, **changes):
    "A method's digits preset, small: four epochs in batches of ten, and what the method needs."
    config = METHODS[name].preset("digits", task)
    more = {"transition": random_transition(split.train.classes), "make_model": maker("small_cnn", split.train), "retain_images": 60, "repeats": 3}
    more |= {"forget_batch": 4, "noise": NoiseConfig(4, 3, amp=False), "max_epochs": 1, "k": 1}
    config = replace(config, **{k: v for k, v in more.items() if hasattr(config, k)})
    return with_fits(config, **{"epochs": 4, "batch_size": 10, "amp": False} | changes)


def with_fits(config, **changes):
    "The configuration with every FitConfig in it changed."
    held = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return replace(config, **{k: replace(v, **changes) for k, v in held.items() if isinstance(v, FitConfig)})


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_a_step_never_waits(name, task, counted):
    "And takes no more operators than it did. A larger number here is a slower method: find out why before it is written down."
    split = small_split(task)
    METHODS[name](maker("small_cnn", split.train)(generator()), split, small_config(name, task, split, epochs=1), generator(1))
    assert counted and max(counted) <= OPERATORS[name], f"{name}: {max(counted)} operators in a step, {OPERATORS[name]} so far"


@pytest.mark.parametrize("task", ("class", "random"))
def test_a_taught_step_never_waits(task, counted):
    "The teacher's forward pass is in the step; it too asks and does not wait."
    split = small_split(task)
    config = replace(small_config("restart", task, split, epochs=1), head="fresh", distil=Distil())
    METHODS["restart"](maker("small_cnn", split.train)(generator()), split, config, generator(1))
    assert counted and max(counted) <= TAUGHT, f"{max(counted)} operators in a step, {TAUGHT} so far"


def test_waits_are_seen(counted):
    few = Examples.of(digits()[0].subset(torch.arange(40)))
    planted = {
        "_local_scalar_dense": lambda logits: logits.sum().item(),
        "nonzero": lambda logits: logits.nonzero(),
        "boolean mask": lambda logits: logits[logits > 0],
        "unique": lambda logits: logits.argmax(1).unique(),
        "lift_fresh": lambda logits: torch.tensor([1.0]),
    }
    for what, mistake in planted.items():

        def objective(model, batch, mistake=mistake):
            loss, logits = cross_entropy(model, batch)
            mistake(logits)
            return loss, logits

        objective.tensors_only = True
        with pytest.raises(Wait, match=what):
            fit(small_network(generator()), few, FitConfig(1, 10, lr=1e-2), generator(), objective=objective)
