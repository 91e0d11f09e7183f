"""Every registered method: the contract, on three kinds of network and three tasks; and the mistakes of public unlearning code."""

import copy
import sys
from collections import Counter
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maga.data import ForgetSplit, ImageSet, MagaError, forget_class, forget_random, forget_subclass
from maga.device import seeded
from maga.experiments.presets import BACKBONES
from maga.experiments.store import canonical
from maga.judges.transition import TransitionMatrix
from maga.methods import distillation, relabelling
from maga.methods.contract import METHODS, Method, forget_then_retain, get_method, method, paired_batches
from maga.methods.dampening import mean_gradients
from maga.methods.distillation import kl_divergence, removed_targets, scrub_batches
from maga.methods.maga import MaGAConfig
from maga.methods.maga_soft import Experts, show_opinions
from maga.methods.noise import NoiseConfig, shared_features
from maga.methods.published import lines_of, unexplained
from maga.methods.relabelling import saliency_mask
from maga.methods.relatives import last_parameters
from maga.methods.restart import Distil, weight_layers
from maga.methods.retraining import fresh_model, reinitialised
from maga.methods.tuning import tune, tuning_split
from maga.models import Classifier, ModelSpec, batch_norms, small_network
from maga.requests import after
from maga.sources import digits
from maga.training import Batch, Examples, FitConfig, fit

from .conftest import generator

NAMES = tuple(METHODS)
RESTARTS = ("restart", "eu_k", "not_", "random_mask", "short_retrain")  # damage of weights alone
STUDENTS = ("undo",)  # learn of the original what is retained
WITH_FACTORY = tuple(name for name in NAMES if "make_model" in METHODS[name].needs)
TASKS = ("class", "subclass", "random")


class Own(nn.Module):
    "A user's network: no batch norm, dropout, a head with a name of its own."

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GELU(), nn.Flatten(), nn.Dropout(0.1))
        self.answer = nn.Linear(8 * 16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.body(x))


class Auxiliary(Own):
    "As GoogLeNet and Inception: beside the logits a second answer, in train mode alone."

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return (logits, logits.mean(1)) if self.training else logits


def split_of(task: str, n: int = 60) -> ForgetSplit:
    train, test = (s.subset(torch.arange(m)) for s, m in zip(digits(), (n, 30), strict=True))
    if task == "random":
        return forget_random(train, test, 8)
    return (forget_class if task == "class" else forget_subclass)(train, test, "three")


def maker(kind: str, images: ImageSet):
    "A factory (generator) -> untrained network."
    if kind == "own":

        def make(generator: torch.Generator) -> nn.Module:
            with seeded(generator):
                return Own(len(images.classes))

        return make
    return ModelSpec.of(kind, images).make


def model_of(kind: str, images: ImageSet, seed: int = 0) -> nn.Module:
    return maker(kind, images)(torch.Generator().manual_seed(seed))


def short(name: str, make=None, batch_size: int = 20, classes: tuple[str, ...] = ()):
    "A method's digits preset, cut to an epoch, with what the method needs: a factory, a transition matrix of these classes."

    def cut(c: FitConfig) -> FitConfig:
        return replace(c, epochs=1, batch_size=batch_size)

    c = get_method(name).preset("digits")
    if name == "ssd":
        return replace(c, alpha=1.1, batch_size=batch_size)
    if name == "unsir":
        return replace(c, noise=NoiseConfig(size=4, steps=2), repeats=2, impair=cut(c.impair), repair=cut(c.repair))
    changes = {"fit": cut(c.fit)}
    if "make_model" in get_method(name).needs:
        changes["make_model"] = make
    if "transition" in get_method(name).needs:
        changes["transition"] = random_transition(classes)
    if isinstance(c, MaGAConfig):
        changes["noise"] = NoiseConfig(size=4, steps=2)
    if name == "eu_k":
        changes["k"] = 1
    if name == "scrub":
        changes["max_epochs"] = 1
    return replace(c, **changes)


def random_transition(classes: tuple[str, ...]) -> TransitionMatrix:
    "A transition matrix of some judge."
    S = torch.rand(len(classes), len(classes), generator=torch.Generator().manual_seed(0))
    return TransitionMatrix.from_similarity(S, classes)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def run(name: str, model: nn.Module, split: ForgetSplit, config=None, seed: int = 1) -> dict[str, Tensor]:
    return state(get_method(name)(model, split, config or short(name, classes=split.train.classes), torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ("resnet10", "own", "vit_tiny"))
def test_contract(name, task, kind):
    "The caller's model stays bit-equal, modes and gradients included; something changes; two runs agree bit for bit, with dropout in every task."
    split = split_of(task, 60)
    model = model_of(kind, split.train)
    model.train()
    config = short(name, maker(kind, split.train), 20, split.train.classes)
    if task not in get_method(name).tasks:
        with pytest.raises(MagaError, match="not defined"):
            run(name, model, split, config)
        return
    before = state(model)
    first = run(name, model, split, config)
    assert equal(before, state(model)) and model.training and all(p.grad is None and p.requires_grad for p in model.parameters())
    assert any(not torch.equal(before[k], first[k]) for k, _ in model.named_parameters())
    assert all(v.isfinite().all() for v in first.values())
    if kind == "own" or task == "class":
        assert equal(first, run(name, model, split, config))


@pytest.mark.parametrize("name", NAMES)
def test_a_second_answer_in_train_mode_is_left_aside(name):
    split = split_of("class")

    def make(generator: torch.Generator) -> nn.Module:
        with seeded(generator):
            return Auxiliary(split.num_classes)

    plain, model = model_of("own", split.train), make(torch.Generator().manual_seed(0))
    config, teacher = short(name, make, 20, split.train.classes), {} if name != "restart" else {"distil": Distil()}
    after = run(name, model, split, replace(config, **teacher))
    assert equal(after, run(name, plain, split, replace(config, **teacher)))


def test_a_second_answer_is_left_aside_while_legacy_noise_is_made_in_train_mode():
    split = split_of("class")
    plain, config = model_of("own", split.train), replace(short("unsir"), legacy=True, shown=3)
    model = Auxiliary(split.num_classes)
    model.load_state_dict(plain.state_dict())
    assert equal(run("unsir", model, split, config), run("unsir", plain, split, config))


class Watched(Own):
    "Says of every pass of training images whether it was in bfloat16."

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.of = Counter()

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        new = Watched(self.answer.out_features)
        new.load_state_dict(self.state_dict())
        new.of = self.of  # one count for all copies
        return new

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 2:  # more than the check of a model shows
            self.of[torch.is_autocast_enabled("cpu")] += 1
        return super().forward(x)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_without_bfloat16_has_none(name):
    "No teacher, target, mask or mean either; here a CPU in bfloat16 stands for a GPU."
    split, made = split_of("class"), []

    def make(generator: torch.Generator) -> nn.Module:
        with seeded(generator):
            made.append(Watched(split.num_classes))
        return made[-1]

    def exact(c: Any) -> Any:
        parts = {f.name: exact(getattr(c, f.name)) for f in fields(c) if is_dataclass(getattr(c, f.name)) and f.name != "transition"}
        return replace(c, **parts, **({"amp": False} if hasattr(c, "amp") else {}))

    config = exact(short(name, make, 20, split.train.classes))
    if name == "restart":
        config = replace(config, experts=Experts(pad=1), distil=Distil())
    if name == "maga_soft":
        config = replace(config, experts=Experts(judge=1.0, pad=1), retain_targets="distilled", transition=random_transition(split.train.classes))
    model = make(torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        run(name, model, split, config)
    assert sum(m.of[False] for m in made) and not any(m.of[True] for m in made)


def test_names_and_presets():
    for name in NAMES:
        m = get_method(name)
        assert isinstance(m, Method) and m.source
        assert {"paper_resnet18", "paper_vit", "digits"} <= set(m.presets)
        for preset in ("paper_resnet18", "paper_vit", "digits"):
            for task in m.tasks:
                assert type(m.preset(preset, task)) is type(m.preset("digits"))
    assert METHODS["unsir"].tasks == ("class", "subclass")


def test_what_methods_need():
    for m in METHODS.values():
        for config in m.presets.values():
            assert all(getattr(config, need) is None for need in m.needs)
    assert [m.name for m in METHODS.values() if "transition" in m.needs] == ["maga", "no_noise", "maga_soft"]
    soft = get_method("maga_soft")
    config = soft.preset("digits")
    assert soft.needed(config) == () and soft.needed(replace(config, experts=replace(config.experts, judge=1.0))) == ("transition",)
    with pytest.raises(MagaError, match="no field of its configuration"):
        method("typo", get_method("finetune").presets, needs=("transition",))


def test_presets_that_differ_by_task_and_data():
    preset = {name: m.preset for name, m in METHODS.items()}
    assert [preset["ssd"]("paper_vit", task).alpha for task in TASKS] == [5, 25, 10]
    assert [preset["ssd"]("paper_resnet18", task).batch_size for task in TASKS] == [64, 64, 128]
    assert [preset["finetune"]("paper_resnet18", task).fit.batch_size for task in TASKS] == [64, 64, 128]
    assert [preset["unsir"](name, task).noise.steps for name, task in (("paper_resnet18", "class"), ("legacy", "subclass"))] == [25, 250]
    for task in TASKS:
        for name, lr in (("paper_resnet18", 1e-3), ("paper_vit", 5e-5)):  # one rate for all data sets
            assert {preset["delete"](name, task, data).fit.lr for data in ("cifar10", "cifar100", "cifar20")} == {lr}
        assert preset["salun"]("paper_vit", task, "cifar10").forget_first and not preset["salun"]("paper_vit", task, "cifar100").forget_first
        assert preset["retrain_head"]("paper_resnet18", task, "cifar20").fit.milestones == (15, 30, 35)


def test_records_of_digits_presets_name_the_notebook_with_their_trials():
    "And none says that it was the best: that depends on the processor, and the notebook shows its place."
    said = {m.name: m.sources["digits"][0].word("") for m in METHODS.values() if any("trials" in s.word("") for s in m.sources["digits"])}
    elsewhere = dict.fromkeys(RESTARTS, "methods.relatives") | {"maga_soft": "methods.maga_soft"}
    assert len(said) == 18 and all(f" {elsewhere.get(name, 'methods.tuning')} shows its place" in word for name, word in said.items())
    assert not any("best" in word for word in said.values())


def test_unsir_shows_three_noise_images_where_the_public_code_is_followed_to_the_letter():
    "Its loop over a batch counts the channels of the first image. The field is no part of the keys of runs that do not use it."
    presets = METHODS["unsir"].presets
    assert {name: c.shown for name, c in presets.items() if "shown" in canonical(c)} == {"legacy": 3, "legacy_subclass": 3}
    lines = [line for line in lines_of(METHODS["unsir"]) if line.setting == "shown" and line.preset != "digits"]
    assert {line.reference for line in lines} == {3}
    assert all((line.ours == 3) != ("impairs more" in line.word) for line in lines)


def test_neggrad_of_small_data_is_the_notebooks_loss():
    "In eval mode, and the weights pulled to the original's beside the retain images' cross entropy. No other preset has the pull in its key."
    split = split_of("class")
    model, preset = model_of("resnet10", split.train), get_method("neggrad_plus").presets["paper_small_scale"]
    whole = replace(preset.fit, epochs=8, lr=0.1, batch_size=len(split.train))
    after = run("neggrad_plus", model, split, replace(preset, fit=whole, forget_batch=len(split.forget_train)))
    net, start = copy.deepcopy(model).eval(), [p.detach().clone() for p in model.parameters()]
    step = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(8):
        step.zero_grad()
        retain, forget = (F.cross_entropy(net(split.train.batch(i)), split.train.labels[i]) for i in (split.retain_train, split.forget_train))
        pull = 0.1 / 2 * sum(((p - q) ** 2).sum() for p, q in zip(net.parameters(), start, strict=True))
        (0.95 * (retain + pull) - 0.05 * forget).backward()
        step.step()
    moved = torch.cat([(p.detach() - q).flatten() for p, q in zip(net.parameters(), start, strict=True)])
    off = torch.cat([(after[name] - p.detach()).flatten() for name, p in net.named_parameters()])
    assert off.norm() < 1e-3 * moved.norm()
    assert all(torch.equal(after[name], b) for name, b in model.named_buffers())
    assert {name for name, c in get_method("neggrad_plus").presets.items() if "pull" in canonical(c)} == {"paper_small_scale"}


def test_every_number_has_a_source_or_a_word():
    "Presets beside the record of the public code: nothing differs without a word, and no preset is without a record."
    assert unexplained() == []
    assert all(set(m.sources) == set(m.presets) for m in METHODS.values())
    halved = replace(METHODS["delete"].presets["paper_resnet18"], fit=replace(METHODS["delete"].presets["paper_resnet18"].fit, batch_size=64))
    changed = replace(METHODS["delete"], presets={"paper_resnet18": halved})
    assert [(line.setting, line.ours, line.reference) for line in unexplained({"delete": changed})] == [("fit.batch_size", 64, 128)]


# Mistakes in public unlearning code


def scrambled(split: ForgetSplit, forget: bool) -> ForgetSplit:
    "The split with the pixels of its forget (or retain) training images replaced by noise."
    which = split.forget_train if forget else split.retain_train
    images = split.train.images.clone()
    images[which] = torch.randint(0, 256, images[which].shape, generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return replace(split, train=replace(split.train, images=images))


@pytest.mark.parametrize("name", ("retrain", "retrain_head", "finetune", "l1_sparse", "unsir", *RESTARTS, *STUDENTS))
@pytest.mark.parametrize("task", TASKS)
def test_forget_images_are_never_seen(name, task):
    "Splits that overlap: a method of retain images alone gives the same weights whatever the forget images show."
    split = split_of(task)
    if task in get_method(name).tasks:
        model = model_of("resnet10", split.train)
        config = short(name, maker("resnet10", split.train))
        assert equal(run(name, model, split, config), run(name, model, scrambled(split, forget=True), config))


def test_delete_sees_forget_images_alone():
    split = split_of("class")
    model = model_of("resnet10", split.train)
    assert equal(run("delete", model, split), run("delete", model, scrambled(split, forget=False)))
    assert not equal(run("delete", model, split), run("delete", model, scrambled(split, forget=True)))


@pytest.mark.parametrize("task", TASKS)
def test_sets_do_not_overlap(task):
    split = split_of(task)
    examples = forget_then_retain(split)
    assert sorted(examples.indices.tolist()) == list(range(len(split.train)))
    n = len(split.forget_train)
    steps = paired_batches(n, len(split.retain_train), 20, 5)(torch.Generator().manual_seed(0))
    rows = torch.cat([s[s >= n] for s in steps])
    assert sorted(rows.tolist()) == list(range(n, len(split.train)))
    assert all(int((s < n).sum()) == 5 for s in steps)


@pytest.mark.parametrize("factory", (True, False))
def test_retrain_keeps_nothing_of_the_original(factory):
    "Retraining that keeps the backbone: two different originals must give the same retrain."
    split = split_of("class")
    config = short("retrain", maker("resnet10", split.train) if factory else None)
    one, two = (run("retrain", model_of("resnet10", split.train, seed), split, config) for seed in (2, 3))
    assert equal(one, two)


def test_retrain_head_keeps_the_backbone_and_says_so():
    split = split_of("class")
    config = replace(short("retrain_head"), fit=replace(short("retrain_head").fit, lr=1e-12))
    model = model_of("resnet10", split.train)
    after = run("retrain_head", model, split, config)
    kept = [torch.allclose(after[k], p, atol=1e-6) for k, p in model.named_parameters()]
    assert all(kept[:-2]) and not kept[-2]
    assert get_method("retrain_head").source.startswith("legacy")


COMPUTED = {  # weights that are computed from others
    "weight norm": nn.utils.parametrizations.weight_norm,
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "older weight norm": nn.utils.weight_norm,
    "older spectral norm": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("kind", COMPUTED)
def test_retrain_head_keeps_nothing_of_the_head_or_refuses(kind):
    "What a reset writes into a computed weight is lost, and the trained head would be the new one."
    split = split_of("class")
    model = model_of("own", split.train)
    model.answer = COMPUTED[kind](model.answer)
    with torch.no_grad():
        model(split.train.batch(torch.arange(2)))
    with pytest.raises(MagaError, match=r"last layer has parameters that its reset_parameters does not reset.*remove_parametrizations"):
        run("retrain_head", model, split, short("retrain_head"))


def test_reinitialised_resets_every_layer_or_refuses():
    split = split_of("class")
    model = model_of("own", split.train)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(7.0)
    fresh = reinitialised(model, torch.Generator().manual_seed(0))
    assert all((p != 7).all() for p in fresh.parameters())
    model.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(MagaError, match="pass make_model"):
        reinitialised(model, torch.Generator())


def test_attention_is_reset_as_its_constructor_does():
    "torch calls it `_reset_parameters`, after the parts: the biases are zero, the projections drawn anew."
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    fresh, made = reinitialised(model, torch.Generator().manual_seed(0)).self_attn, model.self_attn
    for name, p in fresh.named_parameters():
        other = made.get_parameter(name)
        assert (p == 0).all() == (other == 0).all() and abs(p.std() - other.std()) < 0.15 * other.std() + 1e-6, name


class Gained(nn.Linear):
    "Its reset_parameters is the linear layer's, which knows nothing of the gain."

    def __init__(self, *size: int) -> None:
        super().__init__(*size)
        self.gain = nn.Parameter(torch.full((1,), 7.0))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    "left, layer",
    {
        "gain": lambda: Gained(4, 3),
        "weight_orig": lambda: nn.utils.spectral_norm(nn.Linear(4, 3)),
        "weight_g": lambda: nn.utils.weight_norm(nn.Linear(4, 3)),
    }.items(),
)
def test_a_reset_that_leaves_trained_weights_is_refused(left, layer):
    model = nn.Sequential(nn.Flatten(), layer())
    with torch.no_grad():
        model(torch.zeros(1, 4))  # before, a copy of weight norm's is refused by torch
    with pytest.raises(MagaError, match=rf"resets its {left}.*pass make_model"):
        reinitialised(model, torch.Generator())
    model.requires_grad_(False)
    reinitialised(model, torch.Generator())


def test_a_retrain_with_a_factory_keeps_what_is_frozen():
    "Parameters, and a batch norm in eval mode; a network without a place for them is refused, but only where something is frozen."
    split, other = split_of("class"), maker("own", split_of("class").train)
    make = maker("resnet10", split.train)
    model = make(torch.Generator().manual_seed(5)).train()
    model.bn1.running_mean += 0.1
    model.conv1.requires_grad_(False)
    model.bn1.eval()
    after = run("retrain", model, split, short("retrain", make))
    assert torch.equal(after["conv1.weight"], model.conv1.weight) and torch.equal(after["bn1.running_mean"], model.bn1.running_mean)
    assert not torch.equal(after["bn1.weight"], model.bn1.weight) and not torch.equal(after["fc.weight"], model.fc.weight)
    with pytest.raises(MagaError, match=r"conv1\.weight .* is frozen"):
        run("retrain", model, split, short("retrain", other))
    run("retrain", model.train().requires_grad_(True), split, short("retrain", other))


def test_make_model_must_not_give_the_original():
    split = split_of("class")
    model = model_of("resnet10", split.train)
    for name in ("retrain", "bad_teacher"):
        with pytest.raises(MagaError, match="the trained model itself"):
            run(name, model, split, short(name, lambda g: model))


def test_a_mistake_inside_a_factory_is_the_factorys_own():
    "Only one that cannot be called with a generator is said to be so."
    split = split_of("class")
    model = model_of("own", split.train)
    with pytest.raises(TypeError, match="can only concatenate"):
        run("retrain", model, split, short("retrain", lambda g: Own("ten" + 1)))
    for make in (lambda: Own(10), lambda g, classes: Own(classes)):
        with pytest.raises(MagaError, match="make_model cannot be called with a generator"):
            run("retrain", model, split, short("retrain", make))


@pytest.mark.parametrize("name", ("maga", "random_label", "restart"))
def test_a_method_is_filled_with_what_it_needs_and_nothing_else(name):
    "The labels of `random_label` have a field for T, which it does not read."
    config, made = get_method(name).preset("digits"), []
    T, make = random_transition(tuple("abcdefghij")), maker("own", split_of("class").train)
    filled = get_method(name).filled(config, transition=lambda: made.append("transition") or T, make_model=lambda: made.append("make_model") or make)
    assert made == list(get_method(name).needs)
    assert filled == replace(config, **{n: {"transition": T, "make_model": make}[n] for n in made})


@pytest.mark.parametrize("name", ("bad_teacher", "scrub", "delete", "trew", "head_distillation"))
def test_the_student_learns_and_the_teacher_does_not(name, monkeypatch):
    "An optimiser built on the teacher's parameters: here every fit gets the original, leaves it alone and returns another model."
    split = split_of("class")
    model = model_of("resnet10", split.train)
    seen = []
    module = sys.modules[get_method(name).run.__module__]
    real = module.fit

    def watched(start, *args, **kwargs):
        out = real(start, *args, **kwargs)
        seen.append((start, state(out)))
        return out

    monkeypatch.setattr(module, "fit", watched)
    before = state(model)
    after = run(name, model, split, short(name, maker("resnet10", split.train)))
    (start, student), *more = seen
    assert not more and start is model and equal(before, state(model))
    assert equal(student, after) and not equal(before, after)


@pytest.mark.parametrize("target", ("zero", "three", "eight"))
def test_unsir_noise_carries_the_forgotten_label(target, monkeypatch):
    "Noise labelled class 0 whatever the forget class."
    train, test = digits()
    split = forget_class(train, test, target)
    shown = []
    monkeypatch.setattr(relabelling, "fit", lambda model, examples, *a, **k: shown.append(examples) or model)
    run("unsir", model_of("resnet10", train), split)
    impair, repair = shown
    noisy = impair.perturbation.at >= 0
    assert set(impair.targets[noisy].tolist()) == set(split.forgotten)
    assert not set(impair.targets[~noisy].tolist()) & set(split.forgotten)
    assert not set(repair.indices.tolist()) & set(split.forget_train.tolist())


def test_unsir_subclass_noise_carries_the_coarse_label(monkeypatch):
    train, test = digits()
    split = forget_subclass(train, test, "three")
    shown = []
    monkeypatch.setattr(relabelling, "fit", lambda model, examples, *a, **k: shown.append(examples) or model)
    run("unsir", model_of("resnet10", split.train), split)
    assert set(shown[0].targets[shown[0].perturbation.at >= 0].tolist()) == {1}  # three is in the second pair of digits


@pytest.mark.parametrize("task", TASKS)
def test_wrong_labels_are_wrong_and_drawn_once(task, monkeypatch):
    split = split_of(task)
    for name in ("amnesiac", "salun"):
        shown = []
        monkeypatch.setattr(relabelling, "fit", lambda model, examples, *a, seen=shown, **k: seen.append(examples) or model)
        run(name, model_of("resnet10", split.train), split)
        (examples,) = shown
        assert (examples.targets[split.forget_train] != split.train.labels[split.forget_train]).all()
        assert torch.equal(examples.targets[split.retain_train], split.train.labels[split.retain_train])


def test_bad_teacher_is_indifferent_to_the_references_scale():
    "Averaging the KL over classes too divides the loss by K; Adam divides it away, but for its epsilon."
    split = split_of("class")
    make = maker("resnet10", split.train)
    brief = FitConfig(8, 20, lr=0.05, pad=0, flip=False)
    model = fit(model_of("resnet10", split.train), Examples.of(split.train), brief, torch.Generator().manual_seed(0))
    config = short("bad_teacher", make)
    ours = run("bad_teacher", model, split, config)
    original = kl_divergence

    def scaled(net: nn.Module, batch: Batch):
        loss, logits = original(net, batch)
        return loss / split.num_classes, logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "kl_divergence", scaled)
        theirs = run("bad_teacher", model, split, config)
    moved = torch.cat([(ours[k] - p).abs().flatten() for k, p in model.named_parameters()]).mean()
    apart = torch.cat([(ours[k] - theirs[k]).abs().flatten() for k, _ in model.named_parameters()]).mean()
    assert 0 < apart < 0.05 * moved


def test_ssd_counts_mini_batches_not_images():
    "The importance is the mean over mini-batches of the squared gradient of the batch's mean loss: batch size matters."
    split = split_of("class")
    model = model_of("resnet10", split.train)
    by_four, by_one = (mean_gradients(model, split.train, torch.arange(8).split(n), torch.square) for n in (4, 1))
    assert not torch.allclose(by_four["fc.weight"], by_one["fc.weight"], rtol=0.1)
    probe = copy.deepcopy(model).eval()
    slow = torch.zeros_like(probe.fc.weight)
    for part in torch.arange(8).split(4):
        probe.zero_grad()
        nn.functional.cross_entropy(probe(split.train.batch(part)), split.train.labels[part]).backward()
        slow += probe.fc.weight.grad**2 / 2
    assert torch.allclose(by_four["fc.weight"], slow, rtol=1e-4)


def test_ssd_that_selects_nothing_changes_nothing():
    split = split_of("class")
    model = model_of("resnet10", split.train)
    assert equal(state(model), run("ssd", model, split, replace(short("ssd"), alpha=1e12)))


def test_salun_puts_weights_back_despite_momentum_and_decay():
    split = split_of("class")
    model = model_of("resnet10", split.train)
    config = replace(short("salun"), fit=FitConfig(2, 16, lr=0.05, momentum=0.9, weight_decay=0.1, schedule="constant", pad=0, flip=False))
    after = run("salun", model, split, config)
    gradients = mean_gradients(model, split.train, [split.forget_train], torch.clone)
    mask = saliency_mask(gradients, 0.5)
    total, free = sum(m.numel() for m in mask.values()), sum(int(m.sum()) for m in mask.values())
    assert free == round(total / 2)
    assert all(torch.equal(after[k][~mask[k]], p[~mask[k]]) for k, p in model.named_parameters())


def test_scrub_takes_its_max_epochs_first():
    config = replace(short("scrub"), fit=replace(short("scrub").fit, epochs=3, batch_size=10), max_epochs=2, forget_batch=4)
    batches = scrub_batches(8, 30, config)
    kinds = ["".join("f" if (b < 8).all() else "r" for b in batches(torch.Generator())) for _ in range(3)]
    assert kinds == ["ffrrr", "ffrrr", "rrr"]


def test_delete_asks_the_teacher_about_the_same_view(monkeypatch):
    split = split_of("class")
    model = model_of("resnet10", split.train).eval()
    caught = []
    monkeypatch.setattr(distillation, "fit", lambda m, examples, config, generator, *, objective, **k: caught.append(objective) or m)
    run("delete", model, split)
    rows = torch.tensor([0, 2])
    x = torch.randn(2, 3, 8, 8)
    loss, logits = caught[0](model, Batch(x, split.train.labels[split.forget_train[rows]], rows, torch.tensor(0.0)))
    removed = logits.detach().clone()
    removed[:, 3] = -torch.inf
    p = removed.softmax(1)
    want = (p[:, p[0] > 0] * (p[:, p[0] > 0].log() - logits.detach().log_softmax(1)[:, p[0] > 0])).sum(1).mean()
    assert torch.isclose(loss, want, rtol=1e-4)


def test_shared_features_need_no_class_but_the_two():
    "A class without rows is no class: the units are those of the same rows under numbers without a gap."
    features, labels = torch.rand(40, 16, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4
    gap = torch.tensor([0, 1, 3, 6])[labels]
    for a, b in ((0, 1), (2, 3), (3, 0)):
        units = shared_features(features, labels, a, b)
        assert sum(map(len, units)) and all(map(torch.equal, units, shared_features(features, gap, (0, 1, 3, 6)[a], (0, 1, 3, 6)[b])))
    for missing in (2, 9):
        with pytest.raises(MagaError, match=f"No row has the label {missing}"):
            shared_features(features, gap, 0, missing)


@pytest.mark.parametrize("name, changes", (("delete", {}), ("scrub", {}), ("scrub", {"max_epochs": 0}), ("salun", {"forget_first": True})))
def test_one_image_is_enough_where_batch_norm_has_two_values(name, changes):
    "A map of several pixels has statistics of its own; single numbers have none, and then what a step needs is said, or the norm is frozen."
    split, config = forget_random(*(s.subset(torch.arange(60)) for s in digits()), 1), replace(short(name), **changes)
    model = small_network(torch.Generator().manual_seed(0))
    after = run(name, model, split, config)
    assert not equal(state(model), after) and all(v.isfinite().all() for v in after.values())
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))
    if not changes.get("max_epochs", 1):
        assert not equal(state(model), run(name, model, split, config))
        return
    with pytest.raises(MagaError, match=r"a single image, .* two or more"):
        run(name, model, split, config)
    model[2].requires_grad_(False)
    assert not equal(state(model), run(name, model, split, config))


def test_scrub_of_single_forget_images_says_what_to_do():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))
    with pytest.raises(MagaError, match="a batch_size and forget_batch above 1"):
        run("scrub", model, split_of("class"), replace(short("scrub"), forget_batch=1))


@pytest.mark.parametrize("name", ("amnesiac", "delete", "trew", "head_distillation"))
def test_an_image_that_no_label_is_left_for_is_refused(name):
    "Two classes: one is forgotten, then a few images of the other."
    train, test = (replace(s.subset(s.labels < 2), classes=s.classes[:2], coarse_labels=None, coarse_classes=()) for s in digits())
    split = after(forget_random(train, test, 6, among=(train.labels == 1).nonzero().flatten()), forget_class(train, test, 0))
    with pytest.raises(MagaError, match="no label is left"):
        run(name, small_network(torch.Generator().manual_seed(0), 2), split)


def test_trew_without_tilt_is_deletes_target():
    logits = torch.randn(5, 10)
    forbidden = torch.eye(10, dtype=torch.bool)[:5]
    q = removed_targets(logits, forbidden)
    assert torch.equal(q, removed_targets(logits, forbidden, 0.0 * torch.randn(5, 10)))
    assert (q[forbidden] == 0).all() and torch.allclose(q.sum(1), torch.ones(5))


@pytest.mark.parametrize("average", (0.0, 0.9))
def test_head_distillation_leaves_the_encoder(average):
    split = split_of("class")
    model = model_of("resnet10", split.train)
    config = replace(short("head_distillation"), fit=replace(short("head_distillation").fit, average=average))
    after, before = run("head_distillation", model, split, config), state(model)
    assert [k for k in after if not torch.equal(after[k], before[k])] == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize("change", ({"pad": 1}, {"flip": True}))
@pytest.mark.parametrize("name", ("bad_teacher", "scrub", "trew", "head_distillation"))
def test_no_other_view_than_the_teachers_is_shown(name, change):
    split, config = split_of("class"), short(name)
    with pytest.raises(MagaError, match=f"{name} .* pad to 0 and flip to False"):
        run(name, model_of("own", split.train), split, replace(config, fit=replace(config.fit, **change)))


OTHERWISE = {"tau": 0.9, "reading": "column", "alpha": 0.1, "fragment": "replace", "noise": NoiseConfig(steps=2, size=3)}


@pytest.mark.parametrize("name", [m.name for m in METHODS.values() if m.ignores])
def test_fields_that_a_method_ignores_change_nothing(name):
    "And MaGA, whose configuration it shares, reads them."
    split = split_of("class")
    model, ignored = model_of("resnet10", split.train), [f for f in get_method(name).ignores if f in OTHERWISE]
    for tried in (name, "maga"):
        config = short(tried, classes=split.train.classes)
        usual = run(tried, model, split, config)
        same = [equal(run(tried, model, split, replace(config, **{f: OTHERWISE[f]})), usual) for f in ignored]
        assert same == [tried == name] * len(ignored), (tried, ignored, same)
    with pytest.raises(MagaError, match=f"{name} does not read {ignored[0]}"):
        get_method(name).check_change(ignored[0])


def test_settings_without_effect_are_refused():
    unsir = short("unsir")
    with pytest.raises(MagaError, match="never stops early"):
        replace(unsir, noise=replace(unsir.noise, stop=0.1))


def test_eu_k_leaves_the_first_layers():
    split = split_of("class")
    model = model_of("resnet10", split.train)
    after = run("eu_k", model, split, replace(short("eu_k", maker("resnet10", split.train)), k=3))
    new = set(last_parameters(model, 3))
    assert {k for k, p in model.named_parameters() if not torch.equal(after[k], p)} == new
    assert "fc.weight" in new and "conv1.weight" not in new


def test_eu_k_of_all_layers_is_the_retrain():
    "Bit for bit; a ViT's class token and position embedding are registered before its first layer."
    split, make = split_of("class"), maker("vit_tiny", split_of("class").train)
    model, config = make(torch.Generator().manual_seed(0)), short("eu_k", make)
    k = len(weight_layers(model))
    retrained = run("retrain", model, split, replace(short("retrain", make), fit=config.fit))
    assert equal(run("eu_k", model, split, replace(config, k=k)), retrained)
    assert equal(run("short_retrain", model, split, replace(short("short_retrain", make), fit=config.fit)), retrained)
    assert not equal(run("eu_k", model, split, replace(config, k=k - 1)), retrained)


def test_eu_k_says_that_its_layers_are_frozen():
    split = split_of("class")
    model, config = model_of("resnet10", split.train), short("eu_k", maker("resnet10", split.train))
    config = replace(config, k=3, fit=replace(config.fit, average=0.0))
    for name, p in model.named_parameters():
        p.requires_grad_(name not in last_parameters(model, 3))
    with pytest.raises(MagaError, match="last 3 layers can move"):
        run("eu_k", model, split, config)
    model.fc.bias.requires_grad_(True)
    assert not torch.equal(run("eu_k", model, split, config)["fc.bias"], model.fc.bias)


def test_eu_k_refuses_another_order_than_that_of_depth():
    split = split_of("class")
    model, config = model_of("own", split.train), short("eu_k")
    model.body = model._modules.pop("body")  # registered after the layer of the logits
    with pytest.raises(MagaError, match=r"answer\.bias makes the logits"):
        run("eu_k", model, split, config)
    run("eu_k", model, split, replace(config, k=2))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_not_says_where_it_would_negate_nothing():
    split = split_of("class")
    model = model_of("own", split.train)
    model.body[0].requires_grad_(False)
    with pytest.raises(MagaError, match=r"body\.0 are frozen"):
        run("not_", model, split)
    model.body[0] = nn.utils.weight_norm(nn.Conv2d(3, 8, 3, stride=2, padding=1))
    with pytest.raises(MagaError, match=r"body\.0 .* both cancel"):
        run("not_", model, split)
    run("not_", model, split, replace(short("not_"), layer=-1))


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("norm", (nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm))
def test_a_layer_whose_weight_is_computed_counts(norm, bias):
    "EU-k trains it and what comes after it, NoT does not negate what it is computed from."
    split = split_of("class")

    def make(generator: torch.Generator) -> nn.Module:
        with seeded(generator):
            net = Own(split.num_classes)
            net.body[0] = norm(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=bias))
            return net

    model = make(torch.Generator().manual_seed(0))
    before = state(model)
    assert [name for name, _ in weight_layers(model)] == ["body.0", "answer"]
    assert equal(before, state(model))
    assert last_parameters(model, 2) == [name for name, _ in model.named_parameters()]
    after = run("eu_k", model, split, replace(short("eu_k", make), k=2))
    assert not any(torch.equal(after[name], p) for name, p in model.named_parameters())
    with pytest.raises(MagaError, match=r"body\.0 is computed"):
        run("not_", model, split)
    run("not_", model, split, replace(short("not_"), layer=-1))


@pytest.mark.parametrize("name", ["resnet6_haar", "resnet6_s2d", "resnet10", "resnet18", "vit_tiny", "vit_small"])
def test_eu_k_has_no_more_layers_than_the_network_of_its_preset(name):
    "The presets of an experiment name k for their network; more than it has would end every run of it with an error."
    images = ImageSet(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10), [str(k) for k in range(10)])
    model, config = ModelSpec.of(name, images).make(torch.Generator()), get_method("eu_k").preset(BACKBONES[name].preset_of("eu_k"))
    assert 0 < len(last_parameters(model, config.k)) < len(list(model.parameters()))


def test_damage_forgets_batch_norms_statistics():
    "The running statistics of the original were estimated on forget images too: nothing of them may be left."
    split = split_of("class")
    make = maker("resnet10", split.train)
    model = make(torch.Generator().manual_seed(0))
    other = copy.deepcopy(model)
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 7
    for name in RESTARTS:
        assert equal(run(name, model, split, short(name, make)), run(name, other, split, short(name, make)))


@pytest.mark.parametrize("average", (0.0, 0.9))
def test_frozen_parameters_stay(average):
    split = split_of("class")
    make = maker("resnet10", split.train)
    model = make(torch.Generator().manual_seed(0))
    model.conv1.requires_grad_(False)
    for name in ("restart", "random_mask", "short_retrain", "undo", "directional_damage"):
        config = short(name, make)
        after = run(name, model, split, replace(config, fit=replace(config.fit, average=average)))
        assert torch.equal(after["conv1.weight"], model.conv1.weight) and not torch.equal(after["fc.weight"], model.fc.weight)


@pytest.mark.parametrize("wrapped", (False, True))
@pytest.mark.parametrize("name", ("retrain", "restart", "not_", "finetune"))
def test_a_new_wrapper_around_a_network_in_eval_mode_freezes_nothing(name, wrapped):
    "torch's modules begin in train mode, so `nn.Sequential(normalise, net)` of a loaded network is half in each."
    split = split_of("class")
    inner = model_of("resnet10", split.train).eval()
    model = nn.Sequential(nn.Identity(), inner) if wrapped else inner
    make = maker("resnet10", split.train)
    config = short(name, (lambda g: nn.Sequential(nn.Identity(), make(g))) if wrapped else make)
    after_it = run(name, model, split, config)
    mean = f"{'1.' * wrapped}bn1.running_mean"
    assert not torch.equal(after_it[mean], state(model)[mean]), "statistics are those of the retained images"


class KeepsStatistics(nn.Sequential):
    "Freezes its batch norms by its own `train()`, as code for detection often does."

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        for m in batch_norms(self):
            m.eval()
        return self


@pytest.mark.parametrize("name", ("retrain", "restart", "not_", "finetune"))
def test_batch_norms_that_a_network_keeps_in_eval_mode_stay(name):
    split = split_of("class")
    make = maker("resnet10", split.train)
    model = KeepsStatistics(make(generator())).eval()
    for m in batch_norms(model):
        m.running_mean.fill_(0.25)
    after_it = run(name, model, split, short(name, lambda g: KeepsStatistics(make(g))))
    assert all(torch.equal(v, torch.full_like(v, 0.25)) for k, v in after_it.items() if k.endswith("running_mean"))


@pytest.mark.parametrize("name", WITH_FACTORY)
def test_a_factory_that_draws_from_the_global_state_is_repeatable(name):
    split = split_of("class")
    model, config = model_of("own", split.train), short(name, lambda g: Own(len(split.train.classes)))
    torch.manual_seed(0)
    first, global_state = run(name, model, split, config), torch.get_rng_state()
    torch.manual_seed(1)
    assert equal(first, run(name, model, split, config))
    torch.manual_seed(0)
    assert torch.equal(global_state, torch.get_rng_state()), "the caller's random state is not moved"


@pytest.mark.parametrize("wrapper", (torch.compile, nn.DataParallel))
@pytest.mark.parametrize("name", WITH_FACTORY)
def test_a_factory_may_give_a_wrapped_network(name, wrapper):
    "What came in plain goes out plain, whatever the factory wraps its networks in."
    split = split_of("class")
    make = maker("own", split.train)
    plain, wrapped = (run(name, make(generator()), split, short(name, f)) for f in (make, lambda g: wrapper(make(g))))
    assert equal(plain, wrapped)


def test_a_factorys_frozen_layers_move_where_the_originals_do():
    split = split_of("class")
    make = maker("own", split.train)

    def frozen(generator: torch.Generator) -> nn.Module:
        net = make(generator)
        net.body.requires_grad_(False)
        return net

    fresh = fresh_model(make(generator(1)), split, frozen, generator(2))
    assert all(p.requires_grad for p in fresh.parameters())


def test_directional_damage_refuses_the_trained_model_as_a_factory():
    split = split_of("class")
    model = model_of("resnet10", split.train)
    with pytest.raises(MagaError, match="the trained model itself"):
        run("directional_damage", model, split, short("directional_damage", lambda g: copy.deepcopy(model)))


def test_head_distillation_refuses_a_network_that_changes_what_its_last_layer_gives():
    class Capped(Own):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * torch.tanh(super().forward(x) / 2)

    split = split_of("class")
    with pytest.raises(MagaError, match="changes what its last linear layer gives"):
        run("head_distillation", Classifier(Capped(len(split.train.classes)), "answer"), split)


def test_a_restart_has_no_judge():
    with pytest.raises(MagaError, match="no transition matrix"):
        replace(short("restart"), experts=Experts(judge=1.0))


def test_every_row_of_opinions_has_a_scale_of_its_own():
    flat, sure = torch.full((2, 100), 0.01), torch.eye(100)[:2]
    figure = show_opinions({"judge": flat, "views": sure}, torch.zeros(2, 3, 8, 8, dtype=torch.uint8), tuple(map(str, range(100))))
    tops = {axis.get_ylabel(): axis.get_ylim()[1] for axis in figure.axes if axis.get_ylabel()}
    assert tops == pytest.approx({"judge\nup to 0.01": 0.0105, "views\nup to 1.00": 1.05})


def test_restart_needs_no_factory_without_noise():
    "A transformer has parameters that cannot be reset; shrinking alone asks for nothing fresh."
    split = split_of("class", 24)
    model = model_of("vit_tiny", split.train)
    config = replace(short("restart", batch_size=12), perturb=0.0)
    assert not equal(run("restart", model, split, config), state(model))
    with pytest.raises(MagaError, match="pass make_model"):
        run("restart", model, split, replace(config, perturb=0.1))


def test_tuning_never_sees_the_test_set():
    for task in TASKS:
        split = split_of(task)
        part = tuning_split(split, torch.Generator().manual_seed(0))
        assert len(part.train) + len(part.test) == len(split.train) and part.task == split.task
        known = {i.numpy().tobytes() for i in split.train.images}
        assert all(i.numpy().tobytes() in known for i in torch.cat([part.train.images, part.test.images]))
        forgotten = {i.numpy().tobytes() for i in split.train.images[split.forget_train]}
        assert all(i.numpy().tobytes() in forgotten for i in part.train.images[part.forget_train])
        assert not any(i.numpy().tobytes() in forgotten for i in part.train.images[part.retain_train])
        assert (len(part.forget_test) == 0) == (task == "random")


@pytest.mark.parametrize("earlier", ("class", "random", "both"))
@pytest.mark.parametrize("task", ("class", "random"))
def test_tuning_keeps_earlier_requests_in_force(task, earlier):
    "Every image is known by its first two pixels: what was forgotten before is never shown, and measured as it is after the request itself."
    sets = []
    for images in (s.subset(torch.arange(n)) for s, n in zip(digits(), (300, 100), strict=True)):
        pixels = images.images.clone()
        pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = torch.arange(len(images)) // 256, torch.arange(len(images)) % 256
        sets.append(replace(images, images=pixels))
    known = [forget_class(*sets, "seven")] * (earlier != "random") + [forget_random(*sets, 20, seed=5)] * (earlier != "class")
    split = after(forget_class(*sets, "three") if task == "class" else forget_random(*sets, 30), *known)
    assert split.earlier_train is not None
    for seed in range(3):
        part = tuning_split(split, torch.Generator().manual_seed(seed))

        def ids(images, rows):
            return {256 * int(a) + int(b) for a, b in images.images[rows][:, 0, 0, :2].tolist()}

        before, now = ids(split.train, split.earlier_train), ids(split.train, split.forget_train)
        shown = {k: ids(part.train, getattr(part, k)) for k in ("retain_train", "forget_train", "earlier_train", "shown_train")}
        tested = {k: ids(part.test, getattr(part, k)) for k in ("retain_test", "forget_test", "earlier_test")}
        assert not before & (shown["retain_train"] | shown["forget_train"] | shown["shown_train"] | tested["retain_test"])
        assert shown["earlier_train"] | tested["earlier_test"] == before and shown["forget_train"] | tested["forget_test"] == now
        assert bool(len(part.earlier_test)) == (earlier != "random"), "images forgotten one by one are measured as training images"


def test_tune_reports_settings_that_fail():
    split = split_of("class")
    model = model_of("resnet10", split.train)
    good = short("finetune")
    bad = replace(good, fit=replace(good.fit, lr=1e30))
    tried = tune("finetune", [bad, good], model, split, model)
    assert tried[0].config == good and tried[0].gap >= 0 and tried[0].error == ""
    assert tried[1].config == bad and tried[1].gap != tried[1].gap and "at step" in tried[1].error


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("own", ["cuda", "cpu"])
@pytest.mark.parametrize("name", NAMES)
def test_methods_run_on_a_gpu(name, own, recwarn):
    "Wherever the model lies; it stays there."
    split = split_of("class").to("cuda")
    model = model_of("resnet10", split.train).to(own)
    before = state(model)
    after = run(name, model, split, short(name, maker("resnet10", split.train), 12, split.train.classes))
    assert equal(before, state(model)) and all(v.device.type == own for v in model.state_dict().values())
    assert all(v.is_cuda and v.isfinite().all() for v in after.values())
    assert not [w for w in recwarn if "captured" in str(w.message)]
