"""Metrics and evaluation: closed forms, one pass over the images, reasons, and the mistakes of public unlearning code."""

import copy
import math
import os
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maga.data import ForgetSplit, ImageSet, MagaError, forget_class, forget_random, forget_subclass
from maga.device import seeded
from maga.measures.attacks import RelearnConfig, relearn
from maga.measures.contract import METRICS, Evidence, Subject, get_metric, interval, jackknife, timed
from maga.measures.distances import activation_distance, avg_gap, js_divergence, neighbour_tv, neighbour_tv_ratio, retrain_spread, tow
from maga.measures.evaluation import evaluate, train_originals, train_retrains
from maga.measures.membership import cmia, modified_entropy, retained_entropy, retained_margin, u_lira_class
from maga.measures.metrics import Outputs, entropy_mia, measure
from maga.methods.tuning import tuning_split
from maga.models import small_network
from maga.requests import after
from maga.sources import digits
from maga.training import Batch, Examples, FitConfig, fit

CONFIG = FitConfig(1, 32, lr=0.05, pad=0, flip=False)


def small(generator: torch.Generator, classes: int = 10) -> nn.Module:
    with seeded(generator):
        return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, classes))


def split_of(task: str = "class", n: int = 200, m: int = 80) -> ForgetSplit:
    train, test = (s.subset(torch.arange(k)) for s, k in zip(digits(), (n, m), strict=True))
    if task == "random":
        return forget_random(train, test, 12)
    return (forget_class if task == "class" else forget_subclass)(train, test, "three")


def subject(split: ForgetSplit, seed: int = 0) -> Subject:
    return timed(split, lambda: small(torch.Generator().manual_seed(seed), split.num_classes))


def random_probabilities(n: int, k: int, seed: int) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(2).softmax(1)


# Closed forms


def test_js_of_equal_and_of_disjoint():
    p = random_probabilities(7, 5, 0)
    assert torch.allclose(js_divergence(p, p), torch.zeros(7, dtype=torch.float64), atol=1e-12)
    one, other = torch.eye(4)[[0, 1]], torch.eye(4)[[2, 3]]
    assert torch.allclose(js_divergence(one, other), torch.full((2,), math.log(2), dtype=torch.float64))
    assert activation_distance(one, other) == pytest.approx(math.sqrt(2))


def test_tow_of_the_retrain_is_one():
    split = split_of()
    m_r = subject(split)
    assert tow(m_r.accuracies, m_r.accuracies) == 1
    twin = Subject(split, m_r.model)
    assert get_metric("tow")(Evidence((twin,), (m_r,))).values == (1.0,)
    assert get_metric("avg_gap")(Evidence((twin,), (m_r,))).values == (0.0,)


def test_mia_of_separable_entropies_is_nought_or_hundred():
    sure, unsure = 20 * torch.eye(10)[torch.arange(60) % 10], torch.zeros(60, 10)
    assert entropy_mia(sure, unsure, sure[:20]) == 100
    assert entropy_mia(sure, unsure, unsure[:20]) == 0


def test_u_lira_of_identical_and_of_separable_models():
    g = torch.Generator().manual_seed(0)
    phi = torch.randn(8, 50, generator=g, dtype=torch.float64)
    assert u_lira_class(phi, phi).auc == pytest.approx(0.5)
    apart = u_lira_class(phi + 100, phi)
    assert apart.auc == 1 and apart.tpr == 100


# The unit: means of R − 1 retrains


@pytest.mark.parametrize("count", (2, 3, 5, 10))
def test_a_fresh_retrain_has_a_tv_ratio_of_one_at_any_number_of_retrains(count):
    "Draws from one distribution of softmax outputs; against the mean of all retrains two gave 0.91 and three 0.95."
    g = torch.Generator().manual_seed(count)
    common = 2 * torch.randn(3000, 10, generator=g)
    gold, fresh = ((common + 1.5 * torch.randn(m, 3000, 10, generator=g)).softmax(-1) for m in (count, 10))
    assert sum(neighbour_tv_ratio(p, gold) for p in fresh) / 10 == pytest.approx(1, abs=0.02)


def test_the_ratio_is_the_distance_in_units_of_the_spread():
    p, gold = random_probabilities(8, 5, 0), torch.stack([random_probabilities(8, 5, seed) for seed in (1, 2, 3)])
    assert neighbour_tv_ratio(p, gold) == pytest.approx(neighbour_tv(p, gold) / retrain_spread(gold))
    pairs = [(gold[i] + gold[j]) / 2 for i, j in ((1, 2), (0, 2), (0, 1))]
    assert neighbour_tv(p, gold) == pytest.approx(sum(neighbour_tv(p, mean[None]) for mean in pairs) / 3)
    assert retrain_spread(gold) == pytest.approx(sum(neighbour_tv(r, mean[None]) for r, mean in zip(gold, pairs, strict=True)) / 3)


def test_every_model_meets_means_of_equally_many_retrains():
    "A retrain meets the others, any other model the retrains with one left out; Avg Gap and ToW are means over these groups."
    split = split_of()
    m_u, *retrains = (subject(split, seed) for seed in range(4))
    evidence = Evidence((m_u,), tuple(retrains))
    assert evidence.reference_groups(retrains[0]) == (tuple(retrains[1:]),)
    assert [len(some) for some in evidence.reference_groups(m_u)] == [2, 2, 2]
    assert replace(evidence, retrains=(retrains[0],)).reference_groups(m_u) == ((retrains[0],),)
    four = {s: torch.tensor([*s.accuracies, s.measurement.MIA]) for s in (m_u, *retrains)}
    means = [torch.stack([four[r] for r in some]).mean(0) for some in evidence.reference_groups(m_u)]
    for name, by_hand in (("avg_gap", lambda m: avg_gap(four[m_u], m)), ("tow", lambda m: tow(four[m_u][:3], m[:3]))):
        assert get_metric(name)(evidence).mean == pytest.approx(float(sum(map(by_hand, means)) / 3), abs=1e-4)


# Intervals


def test_the_jackknife_of_a_mean_is_the_textbooks_interval_and_a_populations_number_has_one():
    "Student's t times s/√n. U-LiRA's number is one of all seeds: it has the jackknife's interval, not ± 0."
    values = [3.0, 1.0, 4.0, 1.5, 9.0]
    mean, s = sum(values) / 5, math.sqrt(sum((v - sum(values) / 5) ** 2 for v in values) / 4)
    assert jackknife(lambda some: sum(values[i] for i in some) / len(some), 5) == pytest.approx((mean, 2.776445 * s / math.sqrt(5)))
    split = split_of()
    many = [subject(split, seed) for seed in range(10)]
    evidence = Evidence(tuple(many[:5]), tuple(many[5:]))
    score = get_metric("ulira_auc")(evidence)
    without = [get_metric("ulira_auc")(Evidence(*(tuple(g[:i] + g[i + 1 :]) for g in (many[:5], many[5:])))).mean for i in range(5)]
    assert len(score.values) == 1 and score.ci95 == pytest.approx(4 * interval(without)[1]) and score.ci95 > 0
    for retrains, known in ((5, 3), (5, 4), (3, 3)):
        few = get_metric("ulira_auc")(Evidence(tuple(many[:known]), tuple(many[5 : 5 + retrains])))
        assert math.isfinite(few.mean) and math.isfinite(few.ci95) == (known == 4) == ("±" in str(few))
    folds = cmia(*(torch.stack([s.forgotten[0] for s in g]) for g in (many[:5], many[5:])), torch.Generator().manual_seed(0))
    assert get_metric("cmia_auc")(evidence).ci95 == pytest.approx(interval(folds)[1] * 1.5)  # √(1 + 5/4)


class Tampered(nn.Module):
    "A model whose logits are changed: one class is raised, the others are multiplied."

    def __init__(self, model: nn.Module, raised: float, times: float) -> None:
        super().__init__()
        self.model, self.raised, self.times = model, raised, times

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        return torch.where(torch.arange(10) == 3, z + self.raised, z * self.times)


def test_u_lira_asks_three_questions():
    "The class's logit moved in all models: only the published form sees it. The other outputs sharpened: the forms without the class see it."
    split = split_of()
    some, retrains = ([subject(split, seed) for seed in seeds] for seeds in (range(4), range(4, 8)))
    forms = ("ulira_auc", "ulira_auc_centred", "ulira_auc_retained_margin", "ulira_auc_retained_entropy")

    def tampered(raised: float, times: float) -> list[float]:
        models = tuple(Subject(split, Tampered(s.model, raised, times)) for s in some)
        return [get_metric(name)(Evidence(models, tuple(retrains))).mean for name in forms]

    untouched, moved, sharper = tampered(0, 1), tampered(-50, 1), tampered(0, 20)
    assert moved[0] == 1 and untouched[0] < 0.9 and moved[1:] == pytest.approx(untouched[1:], abs=1e-3)
    assert min(sharper[2:]) > 0.95 > max(untouched[2:])


def test_population_attacks_compare_as_many_models_of_one_kind_as_of_the_other():
    "An attack that learns from more retrains finds more; which of them are too many is the order's."
    split = split_of()
    ours, retrains = ([subject(split, seed) for seed in seeds] for seeds in (range(4), range(4, 12)))
    for name in ("ulira_auc", "ulira_tpr", "ulira_auc_centred", "cmia_auc"):
        many, few = (get_metric(name)(Evidence(tuple(ours), tuple(some))) for some in (retrains, retrains[:4]))
        assert (many.mean, many.ci95) == (few.mean, few.ci95)


def test_a_class_behind_an_infinite_output_is_told_and_a_table_stays_complete():
    split = split_of()
    masked = tuple(Subject(split, Tampered(subject(split, seed).model, -math.inf, 1)) for seed in range(3))
    scores = {s.metric: s for s in evaluate(Evidence(masked, tuple(subject(split, seed) for seed in range(3, 6))))}
    for name in ("ulira_auc", "ulira_tpr", "cmia_auc", "retain_gap"):
        assert not scores[name].values and "infinite output" in scores[name].missing, (name, scores[name])


def test_one_output_without_the_forgotten_ones_says_nothing():
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for said in (retained_margin, retained_entropy):
        assert said(z, [1]).shape == (5,)
        with pytest.raises(MagaError, match="fewer than two outputs"):
            said(z, [1, 2])


def test_a_class_that_never_comes_back_needs_more_than_the_steps_tried(monkeypatch):
    "∞ and the bound; in a row's file NaN and the bound, so that means keep the two apart. Retrains that never end, or need no step, are no unit."
    split = split_of()
    steps = {0: 60.0, 1: math.inf, 2: 30.0}
    subjects = [subject(split, seed) for seed in range(3)]
    monkeypatch.setattr("maga.measures.attacks.relearn_steps", lambda s, *rest: steps[subjects.index(s)])
    one, never, retrain = subjects
    back, gone = (Evidence((s,), (retrain,), (retrain,)) for s in (one, never))
    ratio, bound = get_metric("relearn_ratio"), get_metric("relearn_more_than")
    assert ratio(back).values == (2.0,) and math.isnan(bound(back).mean)
    assert str(ratio(gone)) == "∞" and bound(gone).values == (10.0,)
    assert str(ratio(Evidence((one, never), (retrain,), (retrain,)))) == "2.00, ∞ in 1 of 2"
    steps[3] = 0.0
    subjects.append(subject(split, 3))
    for gold, why in ((never, "in one it is not back within 300"), (subjects[3], "none needs any")):
        for metric in (ratio, bound):
            score = metric(Evidence((one,), (gold,), (retrain,)))
            assert score.values == () and score.missing.startswith(f"{metric.name} cannot be computed") and f"no unit: {why}" in score.missing


# Mistakes in public unlearning code


def test_js_is_not_reversed_nor_divided_by_the_classes():
    "JS = ½ KL(p‖m) + ½ KL(q‖m), summed over the classes; the mistake takes KL(m‖p) and KL(m‖q) and divides by K."
    p, q = random_probabilities(6, 10, 1), random_probabilities(6, 10, 2)
    ours, right, wrong = js_divergence(p, q), [], []
    for a, b in zip(p.tolist(), q.tolist(), strict=True):
        m = [(x + y) / 2 for x, y in zip(a, b, strict=True)]
        right.append(sum(x * math.log(x / z) + y * math.log(y / z) for x, y, z in zip(a, b, m, strict=True)) / 2)
        wrong.append(sum(z * math.log(z / x) + z * math.log(z / y) for x, y, z in zip(a, b, m, strict=True)) / 2)
    assert ours.tolist() == pytest.approx(right, rel=1e-9)
    for mistaken in (torch.tensor(wrong), torch.tensor(right) / 10, torch.tensor(wrong) / 10):
        assert not torch.allclose(ours.float(), mistaken, rtol=0.02)


def test_modified_entropy_takes_log_of_one_minus_p():
    "−(1 − p_y) log p_y − Σ_{k≠y} p_k log(1 − p_k); the mistake has log p_k in the sum."
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 1, 2, 3, 4])
    right, wrong = [], []
    for p, y in zip(logits.double().softmax(1).tolist(), labels.tolist(), strict=True):
        own = -(1 - p[y]) * math.log(p[y])
        right.append(own - sum(v * math.log(1 - v) for k, v in enumerate(p) if k != y))
        wrong.append(own - sum(v * math.log(v) for k, v in enumerate(p) if k != y))
    assert modified_entropy(logits, labels).tolist() == pytest.approx(right, rel=1e-6)
    assert not torch.allclose(modified_entropy(logits, labels), torch.tensor(wrong, dtype=torch.float64), rtol=0.1)


TASKS = ("class", "subclass", "random")


@pytest.mark.parametrize("task", TASKS)
def test_splits_do_not_overlap(task):
    "Forget and retain are a partition of train, and of test; so are the parts of a split for tuning, which shares no image with the test set."
    split = split_of(task)
    whole = tuning_split(split, torch.Generator().manual_seed(0))
    for s in (split, whole):
        for images, forget, retain in ((s.train, s.forget_train, s.retain_train), (s.test, s.forget_test, s.retain_test)):
            assert sorted([*forget.tolist(), *retain.tolist()]) == list(range(len(images)))
    rows = [img.numpy().tobytes() for part in (whole.train, whole.test) for img in part.images]
    assert sorted(rows) == sorted(img.numpy().tobytes() for img in split.train.images)
    assert not set(rows) & {img.numpy().tobytes() for img in split.test.images}


def test_a_retrain_saw_no_forget_image():
    "Splits that overlap: train_retrains gives the same weights whatever the forget images show; train_originals does not."
    split = split_of()
    scrambled = split.train.images.clone()
    scrambled[split.forget_train] = 255 - scrambled[split.forget_train]
    other = replace(split, train=replace(split.train, images=scrambled))
    for train, same in ((train_retrains, True), (train_originals, False)):
        one, two = (train(s, small, CONFIG, [0])[0].model.state_dict() for s in (split, other))
        assert all(torch.equal(one[k], two[k]) for k in one) is same


def test_the_last_weights_are_kept_not_the_best():
    "Picking checkpoints on test: fit knows no test images, and returns the weights after the last step even when an earlier step was better."
    split = split_of()
    seen: list[dict[str, Tensor]] = []

    def worse_and_worse(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = model(batch.x)
        return -nn.functional.cross_entropy(logits, batch.target), logits  # climbs: the first weights are the best

    def remember(model: nn.Module) -> None:
        seen.append({k: v.clone() for k, v in model.state_dict().items()})

    config = replace(CONFIG, epochs=3, lr=0.01)
    start = small(torch.Generator().manual_seed(0))
    last = fit(start, Examples.of(split.train), config, torch.Generator().manual_seed(0), objective=worse_and_worse, after_step=remember)
    assert len(seen) == 3 * math.ceil(len(split.train) / config.batch_size)
    assert all(torch.equal(v, seen[-1][k]) for k, v in last.state_dict().items())
    assert measure(seen_model(seen[0]), split).A_r > measure(last, split).A_r


def seen_model(state: dict[str, Tensor]) -> nn.Module:
    model = small(torch.Generator())
    model.load_state_dict(state)
    return model


def test_the_clock_excludes_evaluation():
    "Timing that includes evaluation: nothing is asked of the model while the clock runs, and asking it later adds nothing."
    split, asked = split_of(), []

    def make() -> nn.Module:
        model = small(torch.Generator())
        model.register_forward_pre_hook(lambda m, i: asked.append(len(i[0])))
        time.sleep(0.05)
        return model

    start = time.perf_counter()
    s = timed(split, make)
    made = time.perf_counter() - start
    seconds = s.seconds
    assert not asked and 0.05 <= seconds <= made
    _ = s.measurement
    assert asked and s.seconds == seconds


def test_images_are_one_byte_tensor_and_never_a_list():
    "Materialised lists of images: a set is one uint8 tensor, a split and examples hold indices into it, the float copy is a batch long."
    split = split_of()
    examples = Examples.of(split.train, split.retain_train)
    assert split.train.images.dtype == torch.uint8 and examples.images is split.train
    for owner in (split.train, split, examples):
        assert not [f.name for f in fields(owner) if isinstance(getattr(owner, f.name), list)]
    for indices in (split.forget_train, split.retain_train, examples.indices):
        assert indices.dtype == torch.int64 and indices.ndim == 1
    longest = 0
    real = ImageSet.batch

    def watched(self, indices, *args, **kwargs):
        nonlocal longest
        longest = max(longest, len(indices))
        return real(self, indices, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageSet, "batch", watched)
        fit(small(torch.Generator()), examples, CONFIG, torch.Generator())
    assert 0 < longest <= CONFIG.batch_size


# One pass


@pytest.mark.parametrize("task", TASKS)
def test_the_papers_numbers_take_one_pass(task):
    split = split_of(task)
    counted = []
    model = small(torch.Generator(), split.num_classes)
    model.register_forward_pre_hook(lambda m, i: counted.append(len(i[0])))
    m = measure(model, split)
    assert sum(counted) == len(split.train) + len(split.test)
    assert all(math.isfinite(v) for v in (m.A_r, m.A_f, m.MIA))


def test_all_metrics_of_outputs_share_one_pass():
    split = split_of()
    counted: list[int] = []
    m_u, *retrains = (subject(split, seed) for seed in range(4))
    m_u.model.register_forward_pre_hook(lambda m, i: counted.append(len(i[0])))
    names = [n for n in METRICS if n not in ("probe_gap", "relearn_ratio", "relearn_more_than", "residual_knowledge", "residual_rate")]
    scores = evaluate(Evidence((m_u,), tuple(retrains), (), subject(split, 9)), names)
    assert sum(bool(s.values) for s in scores) > 10
    assert sum(counted) == len(split.train) + len(split.test)


# Reasons

NEEDS = {
    "retain_gap": "a true retrain",
    "forget_gap": "a true retrain",
    "neighbour_tv_ratio": "at least two true retrains",
    "neighbour_tv_ratio_train": "at least two true retrains",
    "cmia_auc": "two or more unlearned models",
    "ulira_auc": "three or more unlearned models",
    "ulira_tpr": "three or more unlearned models",
    "ulira_auc_centred": "three or more unlearned models",
    "ulira_auc_retained_margin": "three or more unlearned models",
    "ulira_auc_retained_entropy": "three or more unlearned models",
    "time_ratio": "the seconds of unlearning",
    "avg_gap": "a true retrain",
    "tow": "a true retrain",
    "js": "a true retrain",
    "activation_distance": "a true retrain",
    "zrf": "a freshly initialised model",
    "rmia_auc": "only for: subclass, random",
    "probe_gap": "a true retrain",
    "relearn_ratio": "a true retrain",
    "relearn_more_than": "a true retrain",
    "residual_knowledge": "a true retrain",
    "l2_to_original": "the original model",
    "barrier_retain": "the original model",
    "barrier_forget": "the original model",
}
FREE = ("A_r", "A_f", "MIA", "legacy_A_r", "legacy_A_f", "mentr_auc", "residual_rate")  # these need the model alone


def test_every_metric_is_either_free_or_named_here():
    assert set(METRICS) == {*NEEDS, *FREE}


@pytest.mark.parametrize("name", NEEDS)
def test_a_metric_says_in_a_sentence_what_is_missing(name):
    score = get_metric(name)(Evidence((subject(split_of()),)))
    assert score.values == () and math.isnan(score.mean) and str(score) == "–"
    assert score.missing.startswith(name) and NEEDS[name] in score.missing and score.missing.endswith(".")


@pytest.mark.parametrize("name", FREE)
def test_a_metric_without_needs_is_computed(name):
    score = get_metric(name)(Evidence((subject(split_of()),)))
    assert score.missing == "" and math.isfinite(score.mean)


class Brought(nn.Module):
    "A network of somebody else's around a small one, with a layer more."

    def __init__(self, net: nn.Module, form: str) -> None:
        super().__init__()
        self.net, self.form = net, form
        with torch.random.fork_rng():
            self.more = nn.Linear(10, 7)

    def forward(self, x: Tensor):
        z = self.net(x)
        more = self.more(z) if self.form != "auxiliary" or self.training else None
        return (z, more) if self.form == "tuple" else z


OF_A_NETWORK = ("A_f", "probe_gap", "relearn_ratio", "residual_knowledge", "residual_rate")


@pytest.mark.parametrize("mode", (True, False))
@pytest.mark.parametrize("form", ("tuple", "auxiliary", "projector"))
def test_metrics_take_a_network_as_it_comes(form, mode):
    "A tuple, a last layer that is not asked in eval mode, one after the classifier: the scores are those of the plain network."
    split = split_of()
    plain, others = subject(split), (subject(split, 1), subject(split, 2))
    brought = Subject(split, Brought(plain.model, form).train(mode))
    scores = [evaluate(Evidence((s,), others, others), OF_A_NETWORK) for s in (plain, brought)]
    assert [s.values for s in scores[0]] == [s.values for s in scores[1]] and all(s.values for s in scores[0])
    assert brought.model.training == mode and type(plain.network) is type(plain.model), "one that needs no adapter gets none"


@pytest.mark.parametrize("dtype", (torch.float16, torch.float64))
def test_metrics_take_a_network_in_any_precision(dtype):
    split = split_of()
    plain, others = subject(split), (subject(split, 1), subject(split, 2))
    brought = Subject(split, copy.deepcopy(plain.model).to(dtype))
    ours, theirs = (evaluate(Evidence((s,), others, others), OF_A_NETWORK) for s in (plain, brought))
    assert all(s.values for s in theirs) and next(brought.model.parameters()).dtype == dtype
    assert brought.features.test.dtype == torch.float32 and torch.allclose(plain.features.test, brought.features.test, atol=1e-2)
    for a, b in zip(ours, theirs, strict=True):
        assert b.mean == pytest.approx(a.mean, rel=0.05, abs=1e-6), a.metric
    one, other = (Subject(split, small_network(torch.Generator().manual_seed(k), split.num_classes)) for k in (0, 1))  # with batch norm
    brought = [Subject(split, copy.deepcopy(s.model).to(dtype)) for s in (one, other)]
    ours, theirs = (evaluate(Evidence((a,), others, (b,)), ("barrier_retain",))[0].mean for a, b in ((one, other), brought))
    assert ours > 0 and theirs == pytest.approx(ours, rel=0.02)


def test_a_metric_that_fails_says_why():
    "A frozen network cannot be relearned: that metric alone has no value, and the rest of the table is there."
    split = split_of()
    frozen, others = subject(split), (subject(split, 1), subject(split, 2))
    frozen.model.requires_grad_(False)
    scores = {s.metric: s for s in evaluate(Evidence((frozen,), others, others))}
    for name in ("relearn_ratio", "relearn_more_than"):
        assert scores[name].values == () and scores[name].missing.startswith(f"{name} cannot be computed: No parameter of the model can move")
    assert scores["probe_gap"].values and scores["retain_gap"].values


def test_a_network_that_breaks_down_is_not_relearned():
    "Answers that are not finite name the first class, which is the forgotten one."
    train, test = digits()
    split, model = forget_class(train, test, "zero"), small(torch.Generator().manual_seed(0))
    with torch.no_grad():
        model[-1].bias[0] -= 1e7
    config = replace(RelearnConfig(), max_steps=6, every=1, fit=replace(RelearnConfig().fit, lr=1e30))
    with pytest.raises(MagaError, match=r"logits are not finite at step [12];"):
        relearn(model, split, 90.0, config, torch.Generator().manual_seed(0))


def test_other_reasons():
    split, lone = split_of(), split_of("random")
    pair = (subject(split, 1), subject(split, 2))
    assert "needs the original" in get_metric("relearn_ratio").missing(Evidence((subject(split),), pair))
    assert "seconds" in get_metric("time_ratio").missing(Evidence((Subject(split, pair[0].model),), pair))
    assert "random task has none" in get_metric("probe_gap").missing(Evidence((subject(lone),), (subject(lone, 1),)))
    few = replace(split, forget_test=split.forget_test[:3])
    many = [subject(few, seed) for seed in range(4)]
    assert "at least four forgotten images" in get_metric("cmia_auc").missing(Evidence(tuple(many[:2]), tuple(many[2:])))
    with pytest.raises(MagaError, match="different forget splits"):
        Evidence((subject(split),), (subject(lone),))


# Real data


def test_neighbour_tv_floor_of_the_five_retrains():
    "Five true retrains without rocket (ResNet-18, CIFAR-100): one against the mean of the others."
    from safetensors.torch import load_file

    folder = os.environ.get("MAGA_DATA")
    path = Path(folder or ".") / ".." / "checkpoints" / "retrain_rocket_probs.safetensors"
    if folder is None or not path.exists():
        pytest.skip("the stored outputs of the retrains are not here")
    stored = load_file(path)
    for part, expected in (("forget_train", 37.1), ("forget_test", 35.7)):
        retrains = torch.stack([stored[f"{part}.{seed}"] for seed in range(1, 6)])
        assert retrain_spread(retrains) == pytest.approx(expected, abs=0.1)


def test_numbers_of_images_that_were_not_asked_about_are_none():
    "Outputs of the forgotten images alone, after an earlier request."
    train, test = digits()
    split = after(forget_class(train, test, "four"), forget_class(train, test, "three"))
    model = small(torch.Generator().manual_seed(0))
    whole, few = measure(model, split), Outputs.of(model, split, rows=split.forget_train)
    some = measure(few, split, model, mia=False)
    assert (some.A_r, some.A_f, some.TV_train) == (whole.A_r, whole.A_f, 0) and math.isnan(some.A_earlier)
    assert measure(model, split, mia=False).A_earlier == whole.A_earlier
    with pytest.raises(MagaError, match=r"MIA needs .* mia=False"):
        measure(few, split)
    with pytest.raises(MagaError, match="was not asked about all"):
        measure(model, split, Outputs.of(model, split, rows=split.retain_train))


def test_a_random_request_after_a_class_is_judged_by_retained_images():
    "Models that are exchangeable with the retrains have half an AUC, though none of them knows the class that was forgotten before."
    g = torch.Generator().manual_seed(0)
    train, test = (ImageSet(torch.randint(0, 256, (2000, 3, 4, 4), dtype=torch.uint8, generator=g), torch.arange(2000) % 10, tuple("abcdefghij")) for _ in range(2))
    split = after(forget_random(train, test, 300, among=train.labels.nonzero().flatten()), forget_class(train, test, 0))

    def subject(seed):
        draw = torch.Generator().manual_seed(seed)

        def logits(images):
            z = torch.randn(len(images), 10, generator=draw) + 2.0 * torch.nn.functional.one_hot(images.labels, 10)
            z[:, 0] = -12.0
            return z

        return Subject(split, torch.nn.Identity(), 1.0, {"outputs": Outputs(logits(train), logits(test))})

    one, *retrains = map(subject, range(5))
    evidence = Evidence((one,), tuple(retrains))
    for name in ("rmia_auc", "mentr_auc"):
        assert abs(get_metric(name)(evidence).mean - 0.5) < 0.04, name


@pytest.mark.parametrize(("task", "batch"), [("class", 64), ("random", 128)])
def test_legacy_accuracies_are_means_over_the_batches_of_the_public_code(task, batch):
    "A plain re-statement; a hundred random images are one batch."
    train, test = digits()
    split = forget_class(train, test, "three") if task == "class" else forget_random(train, test, 100)
    z = [torch.randn(len(images), 10, generator=torch.Generator().manual_seed(3)) for images in (train, test)]
    m = measure(Outputs(*z), split)
    forgotten = (test, z[1], split.forget_test) if task == "class" else (train, z[0], split.forget_train)
    for (images, logits, rows), legacy in (((test, z[1], split.retain_test), m.legacy_A_r), (forgotten, m.legacy_A_f)):
        right = [float(logits[i].argmax() == images.labels[i]) for i in rows.tolist()]
        parts = [right[i : i + batch] for i in range(0, len(right), batch)]
        assert legacy == pytest.approx(100 * sum(sum(p) / len(p) for p in parts) / len(parts))
    assert task == "class" or m.legacy_A_f == pytest.approx(m.A_f)


# Different models


def test_a_model_given_twice_is_no_second_one():
    "Needs of several models count them by their outputs, in words of which and why; a metric of single models takes any."
    split = split_of()
    one, *more = (subject(split, seed) for seed in range(7))
    same = tuple(Subject(split, one.model) for _ in range(3))
    for names, evidence, said in (
        (("neighbour_tv_ratio", "neighbour_tv_ratio_train"), Evidence((more[0],), (same[0], more[1], same[1])), "retrain 1 and retrain 3"),
        (("ulira_auc", "cmia_auc"), Evidence(same, tuple(more[:3])), "unlearned model 1 and unlearned model 2"),
        (("ulira_tpr", "cmia_auc"), Evidence((*more[:2], one), (same[0], *more[2:4])), "unlearned model 3 and retrain 1"),
    ):
        for name in names:
            score = get_metric(name)(evidence)
            assert not score.values and f"{said} give the same outputs" in score.missing and "an original for each seed" in score.missing
    assert get_metric("neighbour_tv_ratio")(Evidence(same, tuple(more[:3]))).values


def test_metrics_of_accuracy_refuse_logits_that_are_not_finite():
    split = split_of()
    broken = Subject(split, Tampered(subject(split).model, math.nan, 1))
    for name in ("tow", "avg_gap", "retain_gap"):
        score = get_metric(name)(Evidence((broken,), (subject(split, 1),)))
        assert not score.values and "not finite" in score.missing, name
