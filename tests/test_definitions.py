"""Every metric of outputs beside a plain line of its definition, on logits that are drawn for every image; and the floors."""

import math
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maga.data import ForgetSplit, forget_class, forget_random, forget_subclass
from maga.measures import attacks
from maga.measures.attacks import RelearnConfig, linear_probe, probe_logits
from maga.measures.contract import METRICS, Evidence, Subject, fold_interval, get_metric
from maga.measures.evaluation import comparison, floor
from maga.measures.membership import cmia, u_lira_class
from maga.measures.metrics import Outputs, entropy, entropy_mia
from maga.sources import digits

TASKS = ("class", "subclass", "random")
OF_WEIGHTS = {"relearn_more_than", "residual_knowledge", "residual_rate", "l2_to_original", "barrier_retain", "barrier_forget"}


@cache
def split_of(task: str) -> ForgetSplit:
    train, test = (s.subset(torch.arange(n)) for s, n in zip(digits(), (300, 250), strict=True))
    return forget_random(train, test, 40) if task == "random" else (forget_class if task == "class" else forget_subclass)(train, test, "three")


def drawn(split: ForgetSplit, seed: int) -> Subject:
    "A model of whom only logits are known, drawn for each image; sure of training images, of test images less."
    g, k = torch.Generator().manual_seed(seed), split.num_classes

    def logits(images, right: float) -> Tensor:
        return 2 * torch.randn(len(images), k, generator=g) + right * F.one_hot(images.labels, k)

    kept = {"outputs": Outputs(logits(split.train, 2.0), logits(split.test, 1.0)), "probe": 10.0 * seed**2}
    return Subject(split, nn.Identity(), 1.0 + seed**2, kept)


def evidence_of(split: ForgetSplit) -> Evidence:
    ours, retrains, originals = ([drawn(split, seed) for seed in range(first, first + n)] for first, n in ((0, 3), (3, 4), (7, 2)))
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, split.num_classes))
    with torch.no_grad():
        teacher[1].weight.normal_(generator=torch.Generator().manual_seed(9))
    return Evidence(tuple(ours), tuple(retrains), tuple(originals), Subject(split, teacher))


def share_of_pairs(seen: Tensor, unseen: Tensor) -> float:
    "AUC, pair by pair."
    return ((seen[:, None] > unseen).double() + 0.5 * (seen[:, None] == unseen).double()).mean().item()


def definitions(e: Evidence, u: Subject) -> dict[str, float]:
    "Every metric of a model by its definition."
    s, refs = e.split, e.retrains
    y, t = s.train.labels, s.test.labels
    where, labels, rows = ("train", y, s.forget_train) if s.task == "random" else ("test", t, s.forget_test)

    def softmax(m: Subject, part: str, rows: Tensor) -> Tensor:
        return getattr(m.outputs, part)[rows].double().softmax(1)

    def right(z: Tensor, y: Tensor, rows: Tensor, batch: int = 10**9) -> float:
        hits = [float(z[i].argmax() == y[i]) for i in rows.tolist()]
        return 100 * float(np.mean([np.mean(hits[i : i + batch]) for i in range(0, len(hits), batch)]))

    def A_r(m: Subject, batch: int = 10**9) -> float:
        return right(m.outputs.test, t, s.retain_test, batch)

    def A_f(m: Subject, batch: int = 10**9) -> float:
        return right(getattr(m.outputs, where), labels, rows, batch)

    def MIA(m: Subject) -> float:
        return entropy_mia(m.outputs.train[s.retain_train], m.outputs.test, m.outputs.train[s.forget_train])

    def four(m: Subject) -> list[float]:
        return [right(m.outputs.train, y, s.forget_train), right(m.outputs.train, y, s.retain_train), A_r(m), MIA(m)]

    def tv(p: Tensor, q: Tensor) -> float:
        return (p - q).abs().sum(1).mean().item() / 2

    def ratio(part: str, rows: Tensor) -> float:
        p, r = softmax(u, part, rows), [softmax(m, part, rows) for m in refs]
        means = [sum(q for j, q in enumerate(r) if j != i) / (len(r) - 1) for i in range(len(r))]
        return sum(tv(p, m) for m in means) / sum(tv(q, m) for q, m in zip(r, means, strict=True))

    def js(p: Tensor, q: Tensor) -> float:
        m = (p + q) / 2
        return 0.5 * (p * (p / m).log() + q * (q / m).log()).sum(1).mean().item()

    def modified(part: str, rows: Tensor, labels: Tensor) -> Tensor:
        own = F.one_hot(labels[rows], s.num_classes).bool()
        p = softmax(u, part, rows)
        return -torch.where(own, (1 - p) * p.log(), p * (1 - p).log()).sum(1)

    def rmia() -> float:
        halves = s.forget_test, s.retain_test
        if s.task == "random":
            order = s.retain_test[torch.randperm(len(s.retain_test), generator=torch.Generator().manual_seed(0))]
            halves = order[: -(-len(order) // 2)], order[-(-len(order) // 2) :]

        def ratios(part: str, rows: Tensor, labels: Tensor) -> Tensor:
            own, *others = (softmax(m, part, rows).gather(1, labels[rows][:, None])[:, 0] for m in (u, *refs))
            return own / (1.3 / 2 * sum(others) / len(others) + 0.7 / 2)

        z = ratios("test", halves[1], t)
        seen, unseen = ((r[:, None] > z).double().mean(1) for r in (ratios("train", s.forget_train, y), ratios("test", halves[0], t)))
        return share_of_pairs(seen, unseen)

    def mean(of, models=refs) -> float:
        return float(np.mean([of(m) for m in models]))

    batch, p = 128 if s.task == "random" else 64, softmax(u, "train", s.forget_train)
    groups = [[m for m in refs if m is not out] for out in refs]
    golds = [np.mean([four(m) for m in some], 0) for some in groups]
    unseen = s.retain_test if s.task == "random" else s.forget_test
    with torch.no_grad():
        taught = e.teacher.model(s.train.batch(s.forget_train)).double().softmax(1)
    return {
        "A_r": A_r(u),
        "A_f": A_f(u),
        "MIA": MIA(u),
        "legacy_A_r": A_r(u, batch),
        "legacy_A_f": A_f(u, batch),
        "retain_gap": A_r(u) - mean(A_r),
        "forget_gap": A_f(u) - mean(A_f),
        "neighbour_tv_ratio": ratio(where, rows),
        "neighbour_tv_ratio_train": ratio("train", s.forget_train),
        "time_ratio": u.seconds / mean(lambda m: m.seconds),
        "avg_gap": float(np.mean([np.abs(np.array(four(u)) - gold).mean() for gold in golds])),
        "tow": float(np.mean([np.prod(1 - np.abs(np.array(four(u)) - gold)[:3] / 100) for gold in golds])),
        "js": mean(lambda m: js(p, softmax(m, "train", s.forget_train))),
        "activation_distance": mean(lambda m: (p - softmax(m, "train", s.forget_train)).square().sum(1).sqrt().mean().item()),
        "zrf": 1 - js(p, taught),
        "mentr_auc": share_of_pairs(-modified("train", s.forget_train, y), -modified("test", unseen, t)),
        "rmia_auc": rmia() if s.task != "class" else math.nan,
        "probe_gap": u.remembered["probe"] - mean(lambda m: m.remembered["probe"]),
        "relearn_ratio": u.seconds / mean(lambda m: m.seconds),  # as the test below has it
    }


def of_populations(e: Evidence) -> dict[str, float]:
    "Every metric of populations by its definition: as many retrains as unlearned models, the first ones."
    s, groups = e.split, (e.unlearned, e.retrains[: len(e.unlearned)])
    part, rows = ("train", s.forget_train) if s.task == "random" else ("test", s.forget_test)
    y, kept = s.train.labels[s.forget_train], [k for k in range(s.num_classes) if k not in s.forgotten]

    def margin(z: Tensor, y: Tensor) -> Tensor:
        p = z.double().softmax(1).gather(1, y[:, None])[:, 0]
        return (p / (1 - p)).log()

    def lira(of, centred: bool = False):
        return u_lira_class(*(torch.stack([of(m.outputs.train[s.forget_train]) for m in group]) for group in groups), centred)

    plain, retained = lira(lambda z: margin(z, y)), {}
    if s.task == "class":
        retained["ulira_auc_retained_margin"] = lira(lambda z: margin(z[:, kept], z[:, kept].argmax(1))).auc
        retained["ulira_auc_retained_entropy"] = lira(lambda z: entropy(z[:, kept]).double()).auc
    folds = cmia(*(torch.stack([getattr(m.outputs, part)[rows] for m in group]) for group in groups), torch.Generator().manual_seed(0))
    return retained | {
        "cmia_auc": fold_interval(folds)[0],
        "ulira_auc": plain.auc,
        "ulira_tpr": plain.tpr,
        "ulira_auc_centred": lira(lambda z: margin(z, y), True).auc,
    }


@pytest.mark.parametrize("task", TASKS)
def test_every_metric_of_outputs_is_its_definition(task, monkeypatch):
    "Training images beside test images, all retrains beside the first, each kind of unseen images beside the other."
    monkeypatch.setattr(attacks, "relearn_steps", lambda m, *_: m.seconds)
    e = evidence_of(split_of(task))
    plain, populations, tried = [definitions(e, u) for u in e.unlearned], of_populations(e), set()
    for name, metric in METRICS.items():
        if name in OF_WEIGHTS or metric.missing(e):
            continue
        tried.add(name)
        wanted = [populations[name]] if metric.of_populations else [p[name] for p in plain]
        assert metric(e).values == pytest.approx(wanted, rel=1e-4, abs=1e-5), name
    undefined = {"class": {"rmia_auc"}, "random": {"probe_gap"}}.get(task, set())
    assert tried == {*plain[0], *populations} - undefined


@pytest.mark.parametrize("task", TASKS)
def test_mia_compares_retained_training_images_with_the_whole_test_set(task):
    "By Newton's method: mean logistic loss of entropies, both kinds of equal weight, and a ridge on the slope; share above one half."
    s = split_of(task)
    g = torch.Generator().manual_seed(1)
    members, others, forgotten = (c * torch.randn(n, 10, generator=g) for c, n in ((1.4, 2000), (1.0, 200), (1.2, 500)))
    assert entropy_mia(members, others, forgotten) == pytest.approx(attacked(members, others, forgotten), abs=0.21)
    few = members[:60], others[:6], forgotten
    assert entropy_mia(*few) == pytest.approx(attacked(*few), abs=0.21)
    u = drawn(s, 1)
    u.outputs.test[s.forget_test] = 0  # as unsure as can be: they are non-members like the others
    parts = u.outputs.train[s.retain_train], u.outputs.test, u.outputs.train[s.forget_train]
    found = u.measurement.MIA
    assert found == entropy_mia(*parts) and found == pytest.approx(attacked(*parts), abs=0.01)


def attacked(members: Tensor, others: Tensor, forgotten: Tensor) -> float:
    "Percent of forgotten images that a logistic regression on the entropy calls members."
    h = [-(z.double().softmax(1) * z.double().log_softmax(1)).sum(1).numpy() for z in (members, others, forgotten)]
    x, y = np.stack([np.r_[h[0], h[1]], np.ones(len(h[0]) + len(h[1]))]), np.r_[np.ones(len(h[0])), np.zeros(len(h[1]))]
    weight, w = np.where(y == 1, len(y) / 2 / len(h[0]), len(y) / 2 / len(h[1])), np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-w @ x))
        slope = x @ (weight * (p - y)) + w * [1, 0]
        w = w - np.linalg.solve((x * weight * p * (1 - p)) @ x.T + np.diag([1, 0]), slope)
    return 100 * float(np.mean(w[0] * h[2] + w[1] > 0))


# Attacks


def test_a_class_is_back_within_five_points_of_the_originals_mean(monkeypatch):
    asked = []
    monkeypatch.setattr(attacks, "relearn_steps", lambda m, target, config: asked.append((target, config)) or 1.0)
    e = evidence_of(split_of("class"))
    assert get_metric("relearn_ratio")(e).values == (1.0,) * 3
    mean = sum(o.measurement.A_f for o in e.originals) / 2
    assert {t for t, _ in asked} == {mean - 5} and all(c == RelearnConfig() for _, c in asked)
    assert e.originals[0].measurement.A_f != e.originals[1].measurement.A_f


def test_the_probe_is_little_regularised_and_a_sub_class_is_a_class_of_its_own():
    "The gradient of the mean cross entropy and of half of 1e-3 times the squared weights vanishes; by hand, one of two coarse classes is cut in two."
    g = torch.Generator().manual_seed(0)
    known, labels = torch.randn(90, 4, generator=g), torch.arange(90) % 3
    x = (known - known.mean(0)) / (known.std(0) + 1e-6)
    said = probe_logits(known, labels, known, 3)
    w = torch.linalg.lstsq(torch.cat([x, torch.ones(90, 1)], 1), said).solution
    error = x.T @ (said.softmax(1) - F.one_hot(labels, 3)) / 90
    assert torch.allclose(error, -1e-3 * w[:4], atol=1e-4) and not torch.allclose(error, -1e-1 * w[:4], atol=1e-3)
    at = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2] * 10)  # the third place is sub-class "two" of coarse class 1
    features = 10 * torch.eye(3)[at] + 0.1 * torch.randn(90, 3, generator=g)
    coarse = torch.tensor([0, 1, 1])[at]
    images, forget, kept = SimpleNamespace(labels=coarse), (at == 2).nonzero().flatten(), (at != 2).nonzero().flatten()
    s = SimpleNamespace(task="subclass", num_classes=2, train=images, test=images, forget_train=forget, forget_test=forget, retain_train=kept)
    assert linear_probe(Outputs(features, features), s) == 100
    moved = features.clone()
    moved[forget[:15]] = 10 * torch.eye(3)[1]  # half of them look like the rest of their coarse class
    assert linear_probe(Outputs(features, moved), s) == 50


# Floors


def test_the_floor_is_of_all_retrains_and_of_eight_halvings():
    e = evidence_of(split_of("class"))
    gap = floor(get_metric("retain_gap"), e)
    own = [r.measurement.A_r for r in e.retrains]
    values = [a - (sum(own) - a) / 3 for a in own]
    assert gap.values == pytest.approx(values) and gap.sd == pytest.approx(np.std(values, ddof=1))
    some = replace(e, retrains=tuple(drawn(e.split, seed) for seed in range(20, 26)))
    auc, g, halves = floor(get_metric("cmia_auc"), some), torch.Generator().manual_seed(0), []
    for _ in range(8):
        order = [some.retrains[i] for i in torch.randperm(6, generator=g).tolist()]
        halves.append(get_metric("cmia_auc")(Evidence(tuple(order[:3]), tuple(order[3:]))).mean)
    assert auc.values == pytest.approx(halves) and auc.sd > 0


def test_a_table_shows_the_floor_of_the_row_with_the_most_retrains():
    e = evidence_of(split_of("class"))
    rows = {"few": replace(e, retrains=e.retrains[:2]), "many": e, "three": replace(e, retrains=e.retrains[:3])}
    for names in (rows, dict(reversed(rows.items()))):
        table = comparison({name: rows[name] for name in names}, ["retain_gap", "js"])
        assert table.loc["floor (retrains)"].tolist() == [str(floor(get_metric(m), e)) for m in ("retain_gap", "js")]
