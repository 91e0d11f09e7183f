"""Damage to features: what the directions are, what they leave alone, and a student of an unlearned teacher."""


import pytest
import torch
from torch import Tensor, nn

from maga.data import MagaError, forget_class
from maga.methods import features
from maga.methods.contract import METHODS, get_method
from maga.methods.features import DirectionalConfig, UndoConfig, blinded, layer_means, leaving, random_directions, without_directions
from maga.methods.restart import Distil, RestartConfig, taught
from maga.sources import digits
from maga.training import Batch, FitConfig

from .conftest import generator
from .test_methods import COMPUTED, equal, maker, model_of, run, split_of, state

ONCE = FitConfig(1, 20, lr=0.05, pad=1, flip=False)


def orthonormal(basis: Tensor) -> bool:
    return torch.allclose(basis @ basis.T, torch.eye(len(basis), dtype=basis.dtype), atol=1e-6)


@pytest.mark.parametrize(("f", "r", "d"), ((1, 3, 8), (2, 3, 8), (3, 5, 6), (1, 9, 4)))
def test_directions_are_what_the_retained_means_leave(f, r, d):
    "Orthonormal, orthogonal to every retained mean; with them the forgotten means are spanned; none where nothing is left."
    g = generator()
    forgotten, retained = (torch.randn(n, d, generator=g, dtype=torch.float64) for n in (f, r))
    basis = leaving(forgotten, retained)
    assert len(basis) == min(f, max(0, d - r)) and orthonormal(basis)
    assert torch.allclose(basis @ retained.T, torch.zeros(len(basis), r, dtype=torch.float64), atol=1e-8)
    both = torch.cat([basis, retained])
    solved = torch.linalg.lstsq(both.T, forgotten.T, driver="gelsd").solution
    assert d <= r or torch.allclose(both.T @ solved, forgotten.T, atol=1e-8)


def test_retained_means_pass_as_before():
    "W' μ_k = W μ_k for every retained class, W' u = 0; half the strength removes half."
    g = generator()
    forgotten, retained = torch.randn(1, 7, generator=g, dtype=torch.float64), torch.randn(4, 7, generator=g, dtype=torch.float64)
    w, u = torch.randn(5, 7, generator=g, dtype=torch.float64), leaving(forgotten, retained)
    cut = without_directions(w, u)
    assert torch.allclose(cut @ retained.T, w @ retained.T) and (cut @ u.T).abs().max() < 1e-12
    assert torch.allclose(without_directions(w, u, 0.5), (w + cut) / 2)
    assert torch.allclose(without_directions(cut, u), cut)  # a projection
    assert torch.equal(without_directions(w, u[:0]), w)


def test_the_control_is_as_many_random_directions():
    a, b = random_directions(2, 9, generator(1)), random_directions(2, 9, generator(2))
    assert a.shape == (2, 9) and orthonormal(a) and not torch.allclose(a, b)
    assert torch.equal(a, random_directions(2, 9, generator(1)))


@pytest.mark.parametrize("kind", ("resnet10", "own", "vit_tiny"))
def test_means_are_those_of_single_passes(kind):
    "Image by image through hooks, for the last layer's input."
    split = split_of("class", 24)
    model = model_of(kind, split.train).eval()
    last = {"resnet10": "fc", "own": "answer", "vit_tiny": "head"}[kind]
    retained = split.retain_train[:15]
    forgotten, kept = layer_means(model, split, retained)[last]
    seen = []
    handle = model.get_submodule(last).register_forward_pre_hook(lambda _, x: seen.append(x[0][0].detach()))
    with torch.no_grad():
        for i in [*split.forget_train.tolist(), *retained.tolist()]:
            model(split.train.batch(torch.tensor([i])))
    handle.remove()
    n, labels = len(split.forget_train), split.train.labels[retained]
    assert torch.allclose(forgotten[0].float(), torch.stack(seen[:n]).mean(0), rtol=1e-3, atol=1e-4)
    means = torch.stack([torch.stack([s for s, y in zip(seen[n:], labels, strict=True) if y == k]).mean(0) for k in labels.unique()])
    assert torch.allclose(kept.float(), means, rtol=1e-3, atol=1e-4)
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("kind", ("resnet10", "own", "vit_tiny"))
@pytest.mark.parametrize("directions", ("forgotten", "random"))
def test_only_weights_change_and_norms_stay(kind, directions):
    split = split_of("class")
    model = model_of(kind, split.train)
    before = state(model)
    cut = blinded(model, split, DirectionalConfig(ONCE, directions=directions), generator(1))
    assert equal(before, state(model)) and cut is not model
    changed = {k for k, v in state(cut).items() if not torch.equal(v, before[k])}
    layers = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert changed and changed <= layers
    for k in changed:  # a projection shortens
        assert state(cut)[k].norm() < before[k].norm()


def test_several_classes_and_grouped_convolutions():
    train, test = (s.subset(torch.arange(n)) for s, n in zip(digits(), (120, 30), strict=True))
    split = forget_class(train, test, ["zero", "one"])
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3, groups=12), nn.Flatten(), nn.Linear(12 * 16, 10))
    found = layer_means(net, split, split.retain_train)
    assert set(found) == {"0", "3"} and len(found["3"][0]) == 2 and len(leaving(*found["3"])) == 2


@pytest.mark.parametrize("kind", ("own", "vit_tiny"))
@pytest.mark.parametrize("name", ("undo", "directional_damage"))
def test_other_networks(name, kind):
    split = split_of("class", 24)
    config = get_method(name).preset("digits", fit=ONCE, make_model=maker(kind, split.train))
    after = run(name, model_of(kind, split.train), split, config)
    assert all(v.isfinite().all() for v in after.values())


def test_undo_starts_between_and_learns_from_the_teacher_alone(monkeypatch):
    "The start number by number; with weight 1 the labels have no part in it."
    split = split_of("class")
    model, caught = model_of("resnet10", split.train), []
    monkeypatch.setattr(features, "recovered", lambda start, s, c, g, p, *, objective: caught.append((start, objective)) or start)
    config = UndoConfig(ONCE, make_model=maker("resnet10", split.train), alpha=0.3, beta=0.2)
    run("undo", model, split, config)
    fresh = maker("resnet10", split.train)(generator(1))
    for (_, p), q, f in zip(caught[0][0].named_parameters(), model.parameters(), fresh.parameters(), strict=True):
        assert torch.allclose(p, 0.7 * q + 0.06 * f, atol=1e-7)
    x, rows = split.train.batch(torch.arange(6)), torch.arange(6)
    student = model_of("resnet10", split.train, 4).eval()
    losses = [caught[0][1](student, Batch(x, y, rows, torch.tensor(0.0)))[0] for y in (torch.zeros(6).long(), torch.ones(6).long())]
    assert torch.equal(*losses)
    with torch.no_grad():
        z, s = model.eval()(x), student(x)
    z[:, 3] = -torch.inf
    p, q = z.softmax(1), s.softmax(1)
    want = torch.where(p > 0, p * (p / q).log(), 0).sum(1).mean()
    assert torch.isclose(losses[0].detach(), want, rtol=1e-4)


def test_a_student_that_says_the_class_is_wrong():
    "The softmax over all classes: a larger logit of the forgotten class costs, which it does not over the retained ones."
    split = split_of("class")
    teacher, student = (model_of("resnet10", split.train, seed).eval() for seed in (1, 2))
    batch = Batch(split.train.batch(torch.arange(8)), split.train.labels[:8], torch.arange(8), torch.tensor(0.0))
    losses = {}
    for by in (0.0, 5.0):
        with torch.no_grad():
            student.fc.bias[3] += by
        losses |= {(by, absent): float(taught(teacher, split, Distil(1.0, 1.0), absent=absent)(student, batch)[0].detach()) for absent in (True, False)}
    assert losses[5.0, True] > losses[0.0, True] + 0.5 and losses[5.0, False] == pytest.approx(losses[0.0, False], abs=1e-5)


BUDGETED = sorted(name for name, m in METHODS.items() if any(preset.endswith("%") for preset in m.presets))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("kind", COMPUTED)
def test_a_weight_that_is_computed_is_not_cut(kind):
    "Refused where it moves; where it is frozen, the other layer alone is cut."
    split = split_of("class")
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), COMPUTED[kind](nn.Linear(32, 10))).eval()
    with torch.no_grad():
        model(split.train.batch(torch.arange(2)))
    with pytest.raises(MagaError, match=r"weight of 3 is computed from others .*remove_parametrizations"):
        run("directional_damage", model, split, DirectionalConfig(ONCE))
    model[3].requires_grad_(False)
    before, after = state(model), state(blinded(model, split, DirectionalConfig(ONCE), generator(1)))
    assert [k for k in before if not torch.equal(before[k], after[k])] == ["1.weight"]


@pytest.mark.parametrize("name", BUDGETED)
def test_the_presets_cost_what_their_names_say(name):
    """On a split of CIFAR-100's size, or of cifar10_small's: the passes of a retrain of forty epochs, ten of resnet6_haar.

    Not much less: the small ones share whole epochs, so that `small_5%` costs 3.33 % without experts or a teacher (`eu_k`), 3.66 % with means.
    """

    class Sized:
        def __init__(self, forget, retain):
            self.forget_train, self.retain_train = range(forget), range(retain)

    for preset, config in get_method(name).presets.items():
        if preset.endswith("%"):
            *network, budget = preset.split("_")
            split = Sized(1_000, 9_000) if network == ["small"] else Sized(500, 49_500)
            share = 100 * get_method(name).cost(config, split) / ((10 if network == ["haar"] else 40) * len(split.retain_train))
            least = 0.66 if network == ["small"] else 0.87
            assert least * float(budget[:-1]) <= share <= float(budget[:-1]), (preset, share)


def test_a_teacher_of_directional_damage_is_the_original():
    "Not the network that was cut."
    split = split_of("class")
    model, asked = model_of("resnet10", split.train), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maga.methods.restart.taught", lambda known, *a, **k: asked.append(known) or taught(known, *a, **k))
        config = DirectionalConfig(ONCE, make_model=maker("resnet10", split.train), distil=Distil())
        run("directional_damage", model, split, config)
    assert len(asked) == 1 and equal(state(asked[0]), state(model))


def test_where_nothing_is_left_it_is_a_restart(monkeypatch):
    split = split_of("class")
    model, make = model_of("own", split.train), maker("own", split.train)
    monkeypatch.setattr(features, "leaving", lambda forgotten, retained: forgotten[:0])
    damaged = run("directional_damage", model, split, DirectionalConfig(ONCE, make_model=make, mean_images=None))
    assert equal(damaged, run("restart", model, split, RestartConfig(ONCE, make_model=make)))


def test_tasks_without_a_class():
    for name, task in (("undo", "random"), ("undo", "subclass"), ("directional_damage", "random")):
        split = split_of(task)
        with pytest.raises(MagaError, match="not defined"):
            run(name, model_of("resnet10", split.train), split)
