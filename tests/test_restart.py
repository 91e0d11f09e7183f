"""A restart with a last layer that starts anew and a teacher of what is retained: plain re-statements, frozen layers, users' networks, bad values."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from maga.data import MagaError
from maga.experiments.store import canonical
from maga.measures.cost import counted_passes
from maga.methods import restart as module
from maga.methods.contract import get_method
from maga.methods.distillation import TrewConfig
from maga.methods.maga import MaGAConfig
from maga.methods.maga_soft import Experts, MagaSoftConfig
from maga.methods.noise import NoiseConfig
from maga.methods.restart import (
    RESTART_PRESETS,
    Distil,
    RestartConfig,
    fresh_weights,
    head_names,
    passes_of,
    retained_examples,
    shrink_and_perturb,
    taught,
    within_budget,
)
from maga.models import BUILT_HERE, batch_norms, last_linear
from maga.own.forgetting import planned
from maga.training import Batch, FitConfig

from .conftest import generator
from .test_methods import equal, maker, model_of, random_transition, run, short, split_of, state

ONCE = FitConfig(1, 20, lr=0.05, pad=1, flip=False)


def config_of(kind: str, split, **changes) -> RestartConfig:
    return RestartConfig(ONCE, make_model=maker(kind, split.train), shrink=0.5, perturb=0.3, **changes)


@pytest.mark.parametrize("head", ("shrunk", "fresh", "fresh row"))
@pytest.mark.parametrize("kind", ("resnet10", "own", "vit_tiny"))
def test_start_weights(kind, head):
    "Number by number: λ θ + γ θ_fresh, but for the last layer, or for its row of the forgotten class."
    split = split_of("class", 24)
    model = model_of(kind, split.train)
    fresh = fresh_weights(model, split, maker(kind, split.train), generator(5))
    start = dict(shrink_and_perturb(model, split, 0.5, 0.3, fresh, head).named_parameters())
    last = {"resnet10": "fc", "own": "answer", "vit_tiny": "head"}[kind]
    for name, p in model.named_parameters():
        want = 0.5 * p + 0.3 * fresh[name]
        if name.startswith(f"{last}.") and head != "shrunk":
            for k in range(10) if head == "fresh" else split.forgotten:
                want[k] = fresh[name][k]
        assert torch.allclose(start[name], want, atol=1e-7), name
    assert head_names(model) == {f"{last}.weight", f"{last}.bias"}


def test_a_fresh_head_needs_no_noise_elsewhere():
    split = split_of("class")
    model = model_of("resnet10", split.train)
    fresh = fresh_weights(model, split, maker("resnet10", split.train), generator(5))
    start = shrink_and_perturb(model, split, 0.5, 0.0, fresh, "fresh")
    assert torch.equal(start.fc.weight, fresh["fc.weight"]) and torch.equal(start.conv1.weight, 0.5 * model.conv1.weight)
    config = replace(config_of("resnet10", split, head="fresh"), perturb=0.0)
    assert all(v.isfinite().all() for v in run("restart", model, split, config).values())


@pytest.mark.parametrize("first", (0, 2))
def test_the_loss_of_a_step(first):
    "Image by image and class by class, over the retained classes; forget rows have the cross entropy alone."
    split, (w, t) = split_of("class"), (0.3, 2.5)
    teacher, student = (model_of("resnet10", split.train, seed) for seed in (1, 2))
    rows, x = torch.tensor([0, 1, 2, 5]), split.train.batch(torch.arange(4))
    q = torch.rand(4, 10, generator=generator()).softmax(1)
    student.eval()
    loss, logits = taught(teacher, split, Distil(w, t), first)(student, Batch(x, q, rows, torch.tensor(0.0)))
    with torch.no_grad():
        z, s = teacher.eval()(x), student(x)
    others, total = [k for k in range(10) if k != 3], 0.0
    for i in range(4):
        wrong = -sum(float(q[i, k] * s[i].log_softmax(0)[k]) for k in range(10))
        p, r = ([math.exp(float(u[i, k]) / t) for k in others] for u in (z, s))
        away = sum(a / sum(p) * (math.log(a / sum(p)) - math.log(b / sum(r))) for a, b in zip(p, r, strict=True))
        total += wrong if rows[i] < first else (1 - w) * wrong + w * t**2 * away
    assert abs(float(loss.detach()) - total / 4) < 1e-5 and torch.equal(logits, s)


def test_the_teacher_says_nothing_of_the_forgotten_class():
    "A teacher whose logit of the class is moved teaches the same; one whose other logits move does not."
    split = split_of("class")
    teacher, student = (model_of("resnet10", split.train, seed) for seed in (1, 2))
    batch = Batch(split.train.batch(torch.arange(8)), split.train.labels[:8], torch.arange(8), torch.tensor(0.0))
    student.eval()

    def lesson(k: int) -> torch.Tensor:
        moved = copy.deepcopy(teacher)
        with torch.no_grad():
            moved.fc.bias[k] += 9.0
        return taught(moved, split, Distil(0.5, 4.0))(student, batch)[0]

    plain = taught(teacher, split, Distil(0.5, 4.0))(student, batch)[0]
    assert torch.equal(lesson(3), plain) and abs(float((lesson(4) - plain).detach())) > 1e-3


def test_a_student_that_is_its_teacher_has_no_divergence():
    split = split_of("random")
    model = model_of("resnet10", split.train).eval()
    batch = Batch(split.train.batch(torch.arange(8)), split.train.labels[:8], torch.arange(8), torch.tensor(0.0))
    assert abs(float(taught(model, split, Distil(1.0, 2.0))(model, batch)[0])) < 1e-6


@pytest.mark.parametrize("task", ("class", "subclass", "random"))
def test_the_student_learns_and_the_teacher_does_not(task, monkeypatch):
    split = split_of(task)
    model = model_of("resnet10", split.train)
    model.train()
    before, teachers, real = state(model), [], module.copied

    def watched(model, device):
        teachers.append((made := real(model, device), state(made)))
        return made

    monkeypatch.setattr(module, "copied", watched)
    after = run("restart", model, split, config_of("resnet10", split, head="fresh", distil=Distil()))
    assert equal(before, state(model)) and model.training and not equal(before, after)
    assert teachers and all(equal(state(m), s) for m, s in teachers[-1:]) and not teachers[-1][0].training


@pytest.mark.parametrize("kind", ("own", "vit_tiny", "vit_small"))
def test_other_networks(kind):
    "A user's network and Transformers: both options, with and without soft targets; two runs agree."
    assert kind == "own" or kind in BUILT_HERE
    split = split_of("class", 24)
    model = model_of(kind, split.train)
    for head in ("fresh", "fresh row"):
        for experts in (None, Experts(n_views=1, pad=1, flip=False, k=3)):
            config = config_of(kind, split, head=head, distil=Distil(), experts=experts)
            first = run("restart", model, split, config)
            assert all(v.isfinite().all() for v in first.values())
            assert kind != "own" or equal(first, run("restart", model, split, config))


def test_frozen_layers():
    split = split_of("class")
    model = model_of("resnet10", split.train)
    model.conv1.requires_grad_(False)
    after = run("restart", model, split, config_of("resnet10", split, head="fresh", distil=Distil()))
    assert torch.equal(after["conv1.weight"], model.conv1.weight) and not torch.equal(after["fc.weight"], model.fc.weight)
    model.fc.weight.requires_grad_(False)
    with pytest.raises(MagaError, match="last layer is frozen"):
        run("restart", model, split, config_of("resnet10", split, head="fresh"))
    run("restart", model, split, config_of("resnet10", split))  # a shrunk head may be frozen, as before


def test_forget_images_are_never_seen():
    split = split_of("class")
    model = model_of("resnet10", split.train)
    config = config_of("resnet10", split, head="fresh", distil=Distil())
    images = split.train.images.clone()
    images[split.forget_train] = 255 - images[split.forget_train]
    other = replace(split, train=replace(split.train, images=images))
    assert equal(run("restart", model, split, config), run("restart", model, other, config))


def test_a_fresh_row_needs_a_forgotten_class():
    for task in ("subclass", "random"):
        split = split_of(task)
        with pytest.raises(MagaError, match="fresh row"):
            run("restart", model_of("resnet10", split.train), split, config_of("resnet10", split, head="fresh row"))


def test_a_network_without_a_linear_last_layer():
    split = split_of("class")
    model = nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(MagaError, match="linear"):
        run("restart", model, split, RestartConfig(ONCE, head="fresh"))
    run("restart", model, split, RestartConfig(ONCE, distil=Distil()))  # a teacher needs none


@pytest.mark.parametrize(
    ("make", "says"),
    (
        (lambda: Distil(weight=1.5), "weight is 1.5"),
        (lambda: Distil(weight=0), "weight is 0"),
        (lambda: Distil(temperature=-1.0), "temperature is -1.0"),
        (lambda: Distil(temperature=math.inf), "temperature is inf"),
        (lambda: Distil(warmth=2.0), "no field 'warmth'"),
        (lambda: RestartConfig(ONCE, head="row"), "one of shrunk, fresh, fresh row"),
        (lambda: RestartConfig(ONCE, distil=0.2), "a Distil"),
    ),
)
def test_bad_values_are_refused(make, says):
    with pytest.raises(MagaError, match=says):
        make()


def test_targets_of_forget_images_are_checked_as_everywhere():
    "By shape, for numbers that are not finite, and as probabilities to the tolerance of all others."
    split = split_of("class")
    soft = torch.full((len(split.forget_train), 10), 0.1)
    assert len(retained_examples(split, soft * 1.005)) == len(split.train)
    for bad, says in ((soft[:, :9], r"forget is a tensor .*expected a tensor"), (soft * math.nan, "not finite"), (2 * soft, "Expected probabilities")):
        with pytest.raises(MagaError, match=says):
            retained_examples(split, bad)


def test_keys_of_earlier_runs_stay():
    "At their defaults the new fields are no part of a key."
    plain = canonical(RestartConfig(ONCE))
    assert "head" not in str(plain) and "distil" not in str(plain)
    assert "head" in str(canonical(RestartConfig(ONCE, head="fresh"))) and "distil" in str(canonical(RestartConfig(ONCE, distil=Distil())))


@pytest.mark.parametrize("average", (0.0, 0.9))
@pytest.mark.parametrize("experts", (None, Experts(n_views=2, pad=1, flip=False, k=3)))
def test_the_teachers_passes_are_counted(experts, average):
    split = split_of("class")
    config = replace(config_of("own", split, distil=Distil(), experts=experts), perturb=0.0, fit=replace(ONCE, epochs=2, average=average))
    model = model_of("resnet10", split.train)
    with counted_passes() as passes:
        run("restart", model, split, config)
    assert float(passes) == pytest.approx(passes_of(config, split))
    rows = len(split.retain_train) + (len(split.forget_train) if experts else 0)
    assert passes_of(config, split) - passes_of(replace(config, distil=None), split) == pytest.approx(2 * rows / 3)


LOOKS = Experts(n_views=2, pad=1, flip=False, k=3)
SOFT = MagaSoftConfig(experts=LOOKS, retain_images=20, fit=ONCE)
AVERAGED = replace(ONCE, average=0.9)
COSTS = {  # what is run, on which network and task
    "targets of the original": ("maga_soft", "resnet10", "class", replace(SOFT, retain_targets="distilled")),
    "targets of the original for all": ("maga_soft", "resnet10", "class", replace(SOFT, retain_targets="distilled", retain_images=None)),
    "a judge": ("maga_soft", "resnet10", "class", replace(SOFT, experts=replace(LOOKS, judge=1.0))),
    "a judge alone": ("maga_soft", "resnet10", "class", replace(SOFT, experts=replace(LOOKS, judge=1.0, views=0.0, neighbours=0.0))),
    "a judge's column": ("maga_soft", "resnet10", "class", replace(SOFT, experts=replace(LOOKS, judge=1.0, reading="column"))),
    "no neighbours": ("restart", "resnet10", "class", RestartConfig(ONCE, perturb=0.0, experts=replace(LOOKS, neighbours=0.0))),
    "neighbours for the own label": ("restart", "resnet10", "random", RestartConfig(ONCE, perturb=0.0, experts=replace(LOOKS, neighbours=0.0))),
    "neighbours for the superclass": ("maga_soft", "resnet10", "subclass", replace(SOFT, experts=replace(LOOKS, neighbours=0.0, bank=9))),
    "no superclass": ("maga_soft", "resnet10", "subclass", replace(SOFT, experts=replace(LOOKS, neighbours=0.0, own=0.0))),
    "statistics": ("restart", "resnet10", "class", RestartConfig(AVERAGED, perturb=0.0)),
    "no statistics": ("restart", "own", "class", RestartConfig(AVERAGED, perturb=0.0)),
    "labels from T": ("no_noise", "resnet10", "class", MaGAConfig(retain_images=20, fit=ONCE)),
    "pairs": ("trew", "resnet10", "class", TrewConfig(replace(ONCE, pad=0, flip=False, batch_size=8), forget_batch=3, retain_images=20)),
    "frozen statistics": ("maga_soft", "resnet10", "class", replace(SOFT, fit=replace(AVERAGED, freeze_batch_norm=True))),
}


@pytest.mark.parametrize("case", COSTS)
def test_what_is_said_to_cost_is_what_is_counted(case):
    name, kind, task, config = COSTS[case]
    split = split_of(task)
    if "transition" in get_method(name).needs:
        config = replace(config, transition=random_transition(split.train.classes))
    model = model_of(kind, split.train)
    with counted_passes() as passes:
        run(name, model, split, config)
    said, bound = (get_method(name).cost(config, split, *given) for given in ((model,), ()))
    assert said == pytest.approx(float(passes)) and bound >= said
    assert (bound > said) == (case == "no statistics"), "a bound for a network without batch norm"


@pytest.mark.parametrize("fragment", ("replace", "union"))
@pytest.mark.parametrize("name", ("maga", "random_label"))
def test_the_noise_is_paid_for(name, fragment):
    "Every allowed class has a bank at most, and every bank all its steps."
    split = split_of("class")
    of_noise = NoiseConfig(size=2, steps=3, amp=False)
    config = MaGAConfig(random_transition(split.train.classes), noise=of_noise, retain_images=20, fit=ONCE, fragment=fragment, tau=0.5)
    with counted_passes() as passes:
        run(name, model_of("resnet10", split.train), split, config)
    said, bank = get_method(name).cost(config, split), 2 * (3 + 1 / 3)
    missing = (said - float(passes)) / bank
    assert missing == pytest.approx(round(missing), abs=1e-3) and 0 <= missing < split.num_classes, "whole banks of classes that no label names"
    assert get_method(name).cost(replace(config, noise=replace(of_noise, stop=100.0)), split) == said, "a bound where noise stops early"


def test_methods_without_a_stated_cost_have_no_budget():
    split = split_of("class")
    with pytest.raises(MagaError, match="ssd has no budget"):
        planned(model_of("resnet10", split.train), split, "ssd", "digits", budget=0.5, trained=12)


def test_a_budget_of_maga_is_kept_or_refused():
    "Where noise for every class costs more than the budget, it says what the least is."
    split = split_of("class")
    model, T = model_of("resnet10", split.train), random_transition(split.train.classes)
    config, training = MaGAConfig(T, noise=NoiseConfig(size=1, steps=2), fit=replace(ONCE, batch_size=4)), FitConfig(epochs=12)
    cost, retrain = get_method("maga").cost, 12 * len(split.retain_train)
    within = within_budget(config, 0.5, split, training, model, cost=cost)
    assert cost(within, split, model) <= 0.5 * retrain
    with pytest.raises(MagaError, match=r"too small: with one batch of retained images this method costs .*or take restart"):
        within_budget(replace(config, noise=NoiseConfig(size=256)), 0.5, split, training, model, cost=cost)


def test_batch_norms_that_are_frozen_cost_no_statistics():
    split, config = split_of("class"), RestartConfig(AVERAGED, perturb=0.0)
    model = model_of("resnet10", split.train)
    for m in batch_norms(model):
        m.requires_grad_(False)
    with counted_passes() as passes:
        run("restart", model, split, config)
    assert passes_of(config, split, model) == pytest.approx(float(passes))
    assert float(passes) < passes_of(config, split)


def test_a_budget_of_a_network_without_batch_norm_buys_more_images():
    split, config, training = split_of("class"), RestartConfig(AVERAGED, perturb=0.0), FitConfig(epochs=2)
    bound, own, normed = (within_budget(config, 0.5, split, training, *m) for m in ((), (model_of("own", split.train),), (model_of("resnet10", split.train),)))
    assert bound == normed and bound.retain_images < own.retain_images == len(split.retain_train)


def test_a_budget_pays_for_the_teacher():
    split = split_of("class")
    training = FitConfig(epochs=12)
    config = within_budget(RESTART_PRESETS["digits_fresh"], 0.25, split, training)
    retrain = 12 * len(split.retain_train)
    assert passes_of(config, split) <= 0.25 * retrain < passes_of(replace(config, retain_images=config.retain_images + 2), split)


def test_the_presets_are_what_their_names_say():
    for name in ("3.5%", "small_12%", "small_11.5%", "small_4.5%", "digits_fresh"):
        c = get_method("restart").preset(name)
        assert c.head == "fresh" and c.distil == Distil(0.2, 4.0) and c.experts is None
    assert short("restart").head == "shrunk" and short("restart").distil is None
    assert isinstance(last_linear(model_of("own", split_of("class").train)), nn.Linear)
