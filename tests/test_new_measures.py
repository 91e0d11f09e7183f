"""Residual knowledge and the two distances to the original: closed forms, oracles, every kind of network and task, what they cost."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maga.data import ForgetSplit, ImageSet, MagaError, forget_class, forget_random, forget_subclass
from maga.device import seeded
from maga.measures.attacks import prototype_attack, quantised
from maga.measures.connectivity import Line, LineConfig, barrier, l2_distance, line_between, line_of, originals_of
from maga.measures.contract import METRICS, Evidence, Subject, get_metric
from maga.measures.evaluation import floor
from maga.measures.membership import tpr_at
from maga.measures.metrics import predict
from maga.measures.residual import Residual, ResidualConfig, chosen_images, residual, share_of, share_said
from maga.models import Classifier, ModelSpec, features_and_logits
from maga.sources import digits

DISTANCES = ("l2_to_original", "barrier_retain", "barrier_forget")
FEW = LineConfig(points=3, images=24, batch_size=16)


class Own(nn.Module):
    "A user's module: batch norm, dropout, a buffer, a parameter that is used twice."

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
        self.again = self.body[0]
        self.head = nn.Linear(64, classes)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        return self.head(self.body(x)) * self.scale


class Says(nn.Module):
    "Always the same class."

    def __init__(self, k: int, classes: int = 10) -> None:
        super().__init__()
        self.register_buffer("answer", F.one_hot(torch.tensor(k), classes).float())

    def forward(self, x):
        return self.answer.expand(len(x), -1)


def split_of(task: str = "class") -> ForgetSplit:
    train, test = (s.subset(torch.arange(k)) for s, k in zip(digits(), (160, 40), strict=True))
    if task == "random":
        return forget_random(train, test, 12)
    return (forget_class if task == "class" else forget_subclass)(train, test, "three")


def network(kind: str, split: ForgetSplit, seed: int = 0) -> nn.Module:
    g = torch.Generator().manual_seed(seed)
    if kind == "own":
        with seeded(g):
            return Own(split.num_classes)
    return ModelSpec.of(kind, split.train).make(g)


# Residual knowledge


@pytest.mark.parametrize("task", ("class", "subclass", "random"))
@pytest.mark.parametrize("kind", ("resnet10", "vit_tiny", "own"))
def test_every_network_and_task_has_residual_knowledge_and_a_retrain_against_its_twin_has_one(kind, task):
    split = split_of(task)
    model = network(kind, split)
    one, twin = Subject(split, model), Subject(split, model)
    assert get_metric("residual_knowledge")(Evidence((one,), (twin,))).values == (1.0,)
    assert 0 <= get_metric("residual_rate")(Evidence((one,))).mean <= 100


def test_constant_classifiers():
    split = split_of()
    n = len(split.forget_train)
    always, never = Subject(split, Says(3)), Subject(split, Says(5))
    nought = Subject(split, Says(5))
    ratio = get_metric("residual_knowledge")
    assert ratio(Evidence((always,), (never,))).mean == n + 1
    assert ratio(Evidence((never,), (always,))).mean == pytest.approx(1 / (n + 1))
    assert ratio(Evidence((never,), (nought,))).mean == 1  # 0/0 of the plain ratio
    assert residual(Evidence((always,), (never, always)), always).rates == (100, 0)  # not compared with itself
    assert floor(ratio, Evidence((always,), (never, nought))).mean == 1


def test_a_registered_metric_says_the_smallest_and_the_largest_value_it_can_have():
    "Without bounds a floor shows impossible values, as a rate below 0."
    assert [name for name, m in METRICS.items() if not math.isfinite(m.bounds[0])] == []
    split = split_of()
    models = tuple(Subject(split, Says(k)) for k in (3, 5, 5, 5))
    rate = get_metric("residual_rate")
    assert rate(Evidence(models)).values == (100, 0, 0, 0)
    assert (floor(rate, Evidence(models, models)).low, floor(rate, Evidence(models, models)).high) == (0, 100)


def test_the_ratio_of_counts_in_images():
    r = Residual(torch.tensor([1.0, 0.5, 0.0]), torch.tensor([[0.5, 0.0, 0.0], [1.0, 0.5, 0.0]]))
    assert r.ratio == pytest.approx((1.5 + 1) / (1.0 + 1))
    assert r.rates == pytest.approx((50, 100 / 3))
    assert r.of_images[:2].tolist() == pytest.approx([1 / 0.75, 0.5 / 0.25]) and r.of_images[2].isnan()


def test_a_linear_classifier_says_the_class_as_often_as_the_normal_distribution_does():
    "One grey image, logits w·x + b and 0: the share is the normal distribution function of margin / (τ ‖w‖)."
    images = ImageSet(torch.full((1, 3, 4, 4), 128, dtype=torch.uint8), torch.tensor([0]), ("a", "b"), mean=(0.0,) * 3, std=(1.0,) * 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    weight, margin, radius = torch.linspace(-1, 1, 48), 0.1, 0.05
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([weight, torch.zeros(48)]))
        model[1].bias.copy_(torch.tensor([margin - float(weight.sum()) * 128 / 255, 0.0]))
    share = share_said(model, images, torch.tensor([0]), ResidualConfig(radius, copies=20_000)).item()
    wanted = 0.5 * (1 + math.erf(margin / (radius * float(weight.norm())) / math.sqrt(2)))
    assert 0.6 < wanted < 0.8
    assert share == pytest.approx(wanted, abs=4 * math.sqrt(wanted * (1 - wanted) / 20_000))


def test_noise_is_seeded_common_to_all_models_and_does_not_depend_on_the_batch(monkeypatch):
    split = split_of()
    model, c = network("own", split), ResidualConfig(0.3, copies=7)
    state, mode = torch.random.get_rng_state(), model.train().training
    rows = torch.arange(len(split.train))
    whole = share_said(model, split.train, rows, c)
    monkeypatch.setattr("maga.measures.residual.pass_size", lambda images: 5)
    assert torch.equal(whole, share_said(model, split.train, rows, c))
    assert torch.equal(state, torch.random.get_rng_state()) and model.training == mode
    assert not torch.equal(whole, share_said(model, split.train, rows, ResidualConfig(0.3, 7, seed=1)))


def test_copies_go_through_in_large_batches_and_once():
    split = split_of()
    sizes: list[int] = []
    one = Subject(split, network("own", split))
    one.model.register_forward_pre_hook(lambda m, i: sizes.append(len(i[0])))
    retrain = Subject(split, network("own", split, 1))
    for name in ("residual_knowledge", "residual_rate"):
        get_metric(name)(Evidence((one,), (retrain,)))
    c = ResidualConfig()
    assert sum(sizes) == len(split.forget_train) * c.copies and len(sizes) < c.copies
    assert len(chosen_images(split, ResidualConfig(images=5))) == 5


def test_large_images_are_perturbed_as_they_are_stored():
    split = split_of()
    larger = ForgetSplit(split.train.resized(12), split.test.resized(12), split.forget_train, split.forget_test, "class", "three", (3,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 10))
    assert share_of(Subject(larger, model)).shape == split.forget_train.shape


# Distances to the original


@pytest.mark.parametrize("task", ("class", "random"))
@pytest.mark.parametrize("kind", ("resnet10", "vit_tiny", "own"))
def test_identical_models_are_at_distance_nought_and_doubled_weights_at_one(kind, task):
    split = split_of(task)
    original = Subject(split, network(kind, split))
    twin, double = (Subject(split, copy.deepcopy(original.model)) for _ in range(2))
    with torch.no_grad():
        for p in double.model.parameters():
            p.mul_(2)
    here, there = (Evidence((s,), (), (original,)) for s in (twin, double))
    assert get_metric("l2_to_original")(here).mean == 0
    assert get_metric("l2_to_original")(there).mean == pytest.approx(1, abs=1e-6)
    assert max(line_between(original.model, twin.model, split, FEW).barriers) < 1e-5
    assert all(b >= 0 and math.isfinite(b) for b in line_between(original.model, double.model, split, FEW).barriers)


def test_l2_against_one_long_vector():
    split = split_of()
    a, b = network("vit_tiny", split), network("vit_tiny", split, 1)
    one, other = (torch.cat([p.detach().double().flatten() for p in m.parameters()]) for m in (a, b))
    assert l2_distance(b, a) == pytest.approx(float((other - one).norm() / one.norm()), rel=1e-5)


def test_a_convex_loss_has_no_barrier_and_the_line_is_that_of_the_mixed_weights():
    "A linear classifier: cross entropy is convex in its weights, so the loss lies below the straight line."
    split = split_of()
    with seeded(torch.Generator().manual_seed(0)):
        a, b = (nn.Sequential(nn.Flatten(), nn.Linear(192, 10)) for _ in range(2))
    line = line_between(a, b, split, LineConfig(5, images=1000))
    assert line.barriers == pytest.approx((0, 0), abs=1e-6)
    x, y = split.train.batch(split.forget_train).flatten(1), split.train.labels[split.forget_train]
    for t, loss in zip(line.t, line.forget, strict=True):
        z = x @ ((1 - t) * a[1].weight + t * b[1].weight).T + (1 - t) * a[1].bias + t * b[1].bias
        assert loss == pytest.approx(F.cross_entropy(z, y).item(), rel=1e-5)


def test_barrier_of_a_curve():
    assert barrier((0.0, 0.5, 1.0), (1.0, 4.0, 2.0)) == 2.5
    assert barrier((0.0, 0.25, 1.0), (0.0, 1.0, 4.0)) == 0
    assert Line((0.0, 0.5, 1.0), (0.0, 1.0, 0.0), (2.0, 0.0, 2.0)).barriers == (1.0, 0.0)


@pytest.mark.parametrize("spoilt", [0, 1, 2])
@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_gives_no_barrier(spoilt, loss):
    losses = [1.0, 2.0, 1.0]
    losses[spoilt] = loss
    with pytest.raises(MagaError, match=f"is {loss} at t = {spoilt / 2:g}"):
        barrier((0.0, 0.5, 1.0), tuple(losses))


def test_networks_that_overflow_between_two_have_no_barrier():
    "The loss is finite at both ends; between them a large layer of one meets a large layer of the other."
    split = split_of()
    with seeded(torch.Generator().manual_seed(0)):
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Linear(8, 8), nn.Linear(8, 10))
    other = copy.deepcopy(model)
    with torch.no_grad():
        model[1].weight.mul_(1e25), model[2].weight.mul_(1e-25)
        other[1].weight.mul_(1e-25), other[2].weight.mul_(1e25)
    evidence = Evidence((Subject(split, other),), (), (Subject(split, model),))
    assert "loss along the line is nan at t = 0.125" in get_metric("barrier_retain")(evidence).missing


def test_two_signs_of_the_same_network_have_a_barrier():
    "Hidden units that change sign in pairs give the same function; half way the network is constant: the loss is ln K."
    split = split_of()
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 32, bias=False), nn.Tanh(), nn.Linear(32, 10, bias=False))
    mirror = copy.deepcopy(model)
    with torch.no_grad():
        for p in mirror.parameters():
            p.neg_()
    line = line_between(model, mirror, split, LineConfig(3))
    assert line.retain[1] == pytest.approx(math.log(10), rel=1e-5)
    assert line.retain[0] == pytest.approx(line.retain[2], rel=1e-5)
    assert line.barriers[0] == pytest.approx(max(0, math.log(10) - line.retain[0]), abs=1e-5)
    evidence = Evidence((Subject(split, mirror),), (), (Subject(split, model),))
    assert get_metric("l2_to_original")(evidence).mean == pytest.approx(2, abs=1e-6)
    for name, end in (("barrier_retain", line.retain[0]), ("barrier_forget", line.forget[0])):
        assert get_metric(name)(evidence).mean == pytest.approx(max(0, math.log(10) - end), abs=1e-4)


def test_the_line_is_measured_once_changes_nothing_and_is_deterministic():
    split = split_of()
    original, other = (Subject(split, network("own", split, seed)) for seed in range(2))
    state, weights = torch.random.get_rng_state(), copy.deepcopy(other.model.state_dict())
    line = line_of(other, original, FEW)
    assert line_of(other, original, FEW) is line and line_of(original, other, FEW) is not line
    assert line_between(original.model, other.model, split, FEW) == line
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(v, weights[k]) for k, v in other.model.state_dict().items())


@pytest.mark.parametrize("name", DISTANCES)
def test_reasons(name):
    split = split_of()
    a, b, c = (Subject(split, network("own", split, seed)) for seed in range(3))
    vit = Subject(split, network("vit_tiny", split))
    metric = get_metric(name)
    assert "needs the original model" in metric.missing(Evidence((a,), (b,)))
    assert "same architecture" in metric.missing(Evidence((vit,), (), (a,)))
    assert "in the same order" in metric.missing(Evidence((a,), (), (b, c)))
    assert metric.missing(Evidence((a, b), (), (c,))) == metric.missing(Evidence((a, b), (), (b, c))) == ""
    with pytest.raises(MagaError, match="different networks"):
        line_between(a.model, vit.model, split, FEW)


def test_each_model_has_its_own_original_and_a_retrain_has_all():
    split = split_of()
    u, v, o, p, r, q = (Subject(split, network("own", split, seed)) for seed in range(6))
    evidence = Evidence((u, v), (r, q), (o, p))
    assert originals_of(evidence, v) == (p,) and originals_of(evidence, r) == (o, p)
    values = get_metric("l2_to_original")(evidence).values
    assert values == pytest.approx((l2_distance(u.model, o.model), l2_distance(v.model, p.model)))
    mean = sum(l2_distance(x.model, y.model) for x in (r, q) for y in (o, p)) / 4
    assert floor(get_metric("l2_to_original"), evidence).mean == pytest.approx(mean)


class TwoHeads(nn.Module):
    "The layer that makes the logits is not the last one that is registered."

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc, self.aux = nn.Flatten(), nn.Linear(192, 10), nn.Linear(192, 10)

    def forward(self, x):
        h = self.body(x)
        return self.fc(h), self.aux(h)


class Tokens(nn.Module):
    "The last layer answers for each patch; the network takes the mean."

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.fc = nn.Conv2d(3, 16, 2, 2), nn.Linear(16, 10)

    def forward(self, x):
        return self.fc(self.patches(x).flatten(2).transpose(1, 2).relu()).mean(1)


def test_a_prototype_goes_into_the_layer_that_makes_the_logits():
    "As into a network with that layer alone; in any precision."
    split, g = split_of(), torch.Generator().manual_seed(0)
    two = TwoHeads()
    one = nn.Sequential(two.body, two.fc)
    attacked = {type(m).__name__: prototype_attack(m, split, torch.Generator().manual_seed(0)) for m in (two, one)}
    outputs = [predict(m, split.test) for m in attacked.values()]
    assert outputs[0].equal(outputs[1]) and not outputs[0].equal(predict(one, split.test))
    for precision in (torch.float64, torch.float16, torch.bfloat16):
        model = copy.deepcopy(one).to(precision)
        assert all(p.isfinite().all() for p in prototype_attack(model, split, g).parameters())
        assert line_between(model, copy.deepcopy(model), split, FEW).barriers == (0, 0)


def test_a_row_of_zeros_stays_zero_in_any_precision():
    "And rounding to 16 bits moves float32 weights by at most half a step."
    for precision in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        model = nn.Linear(192, 10).to(precision)
        model.weight.data[3] = 0
        weight = quantised(model, 8).weight
        assert weight[3].eq(0).all() and (weight - model.weight).abs().max() <= model.weight.abs().max() / 127 * 0.51 + torch.finfo(precision).eps


def test_features_of_a_layer_that_answers_for_tokens_are_their_mean():
    "The layer on them gives the network's logits, because the mean of linear answers is the answer to the mean."
    model, split = Classifier(Tokens(), "fc"), split_of()
    features, logits = features_and_logits(model, split.train.batch(split.forget_train))
    assert features.shape == (len(split.forget_train), 16)
    torch.testing.assert_close(model.model.fc(features), logits)


def test_what_wraps_an_original_changes_no_distance():
    "A method gives back the plain network."
    split = split_of()
    original, unlearned = network("small_cnn", split), network("small_cnn", split, 1)
    plain, wrapped = (Evidence((Subject(split, unlearned),), originals=(Subject(split, o),)) for o in (original, nn.DataParallel(original)))
    for name in ("l2_to_original", "barrier_retain"):
        assert get_metric(name)(wrapped).mean == get_metric(name)(plain).mean > 0


def test_an_attack_at_chance_has_its_closed_form():
    "Of m unseen scores without ties, the (k + 1)-th largest is passed by (k + 1)/(m + 1) of the seen on average, k = ⌊m/100⌋."
    g = torch.Generator().manual_seed(0)
    for m in (30, 100):
        found = [tpr_at(torch.randn(400, generator=g), torch.randn(m, generator=g)) for _ in range(100)]
        error = torch.tensor(found).std() / 10
        assert abs(sum(found) / 100 - 100 * (m // 100 + 1) / (m + 1)) < 4 * error


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    split = split_of().to("cuda")
    a, b, c = (Subject(split, network("resnet10", split, seed).cuda()) for seed in range(3))
    evidence = Evidence((a,), (b,), (c,))
    assert all(math.isfinite(get_metric(n)(evidence).mean) for n in (*DISTANCES, "residual_knowledge", "residual_rate"))
