"""Which images, which row, which sign: against closed forms, because two forms of the code under test would agree."""

import copy
import math
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maga.data import ImageSet, forget_class, forget_subclass
from maga.measures.contract import Evidence, Subject, get_metric
from maga.measures.metrics import Outputs, measure, predict
from maga.methods import distillation
from maga.methods.contract import get_method
from maga.methods.maga import feature_noise_banks, perturbed_examples, ranked_labels
from maga.requests import after, forget_files
from maga.sources import digits
from maga.training import Batch, Examples, FitConfig, fit

from .conftest import generator
from .test_evaluation import split_of as measured_split
from .test_methods import model_of, run, short, split_of


def test_the_images_of_a_sub_class_are_those_of_its_fine_label(digit_sets):
    for k in (0, 3, 8):
        split = forget_subclass(*digit_sets, k)
        for images, rows in zip(digit_sets, (split.forget_train, split.forget_test), strict=True):
            assert torch.equal(rows, (images.labels == k).nonzero().flatten())


def said(images: ImageSet, size: float, wrong: Tensor | None = None) -> Tensor:
    "Logits of a network that is right on all images but those, where it says the next class."
    labels = images.labels.clone()
    if wrong is not None:
        labels[wrong] = (labels[wrong] + 1) % len(images.classes)
    return size * F.one_hot(labels, len(images.classes)).float()


def test_a_registered_comparison_has_the_sign_and_the_images_that_it_names():
    "A model that knows the class beside a retrain that does not: all gaps are above 0, a quarter of the time, sure where it was trained."
    split, g = measured_split(), generator()
    train, test = said(split.train, 9.0), said(split.test, 3.0)
    blind, elsewhere = test.clone(), train.clone()
    blind[:, 3] = -9.0
    elsewhere[split.retain_train] *= -1
    known = Outputs(said(split.train, 1.0), said(split.test, 1.0))
    unknown = Outputs(torch.randn(len(split.train), 10, generator=g), torch.randn(len(split.test), 10, generator=g))
    one = Subject(split, nn.Identity(), 2.0, {"outputs": Outputs(train, test), "features": known})
    retrain = Subject(split, nn.Identity(), 8.0, {"outputs": Outputs(elsewhere, blind), "features": unknown})
    found = {n: get_metric(n)(Evidence((one,), (retrain,))).mean for n in ("forget_gap", "probe_gap", "time_ratio", "mentr_auc", "js", "activation_distance")}
    assert found["forget_gap"] == 100 and found["probe_gap"] > 50 and found["time_ratio"] == 0.25 and found["mentr_auc"] == 1
    assert found["js"] == pytest.approx(0, abs=1e-9) and found["activation_distance"] == pytest.approx(0, abs=1e-6)


def test_rmia_calls_seen_what_only_the_model_is_sure_of():
    split, g = measured_split("random"), generator()
    spread = said(split.test, 1.0) + torch.randn(len(split.test), 10, generator=g)
    one = Subject(split, nn.Identity(), 1.0, {"outputs": Outputs(said(split.train, 9.0), spread)})
    retrain = Subject(split, nn.Identity(), 1.0, {"outputs": Outputs(torch.zeros(len(split.train), 10), torch.zeros(len(split.test), 10))})
    assert get_metric("rmia_auc")(Evidence((one,), (retrain,))).mean > 0.9


def test_measure_reads_the_images_that_its_numbers_name():
    "Sure on all training images and unsure on all test images; right on some sets, wrong on others."
    split = measured_split()
    test = said(split.test, 0.1, split.retain_test)
    ours = Outputs(said(split.train, 20.0, split.forget_train), test)
    gold = Outputs(said(split.train, 20.0), test)  # differs on forgotten training images alone
    m = measure(ours, split, gold)
    assert (m.A_r, m.A_f, m.MIA, m.TV, m.agreement) == (0, 100, 100, 0, 100) and m.TV_train == pytest.approx(100, abs=1e-3)
    assert Subject(split, nn.Identity(), remembered={"outputs": ours}).accuracies == (0, 100, 0)


@pytest.mark.parametrize(("name", "noisy"), (("maga", True), ("random_label", True), ("no_noise", False)))
def test_an_ablation_lacks_what_its_name_says_and_nothing_else(name, noisy, monkeypatch):
    split, shown = split_of("class"), []
    monkeypatch.setattr(sys.modules[get_method(name).run.__module__], "fit", lambda model, examples, *a, **k: shown.append(examples) or model)
    model, n = model_of("resnet10", split.train), len(split.forget_train)
    for seed in (1, 2):
        run(name, model, split, seed=seed)
    one, two = shown
    assert (one.perturbation is not None) == noisy
    assert not noisy or (one.perturbation.positive_at[:n] >= 0).all()
    assert torch.equal(one.targets[:n], two.targets[:n]) == (name != "random_label")


def caught_objective(name, model, split, config, monkeypatch):
    "The objective that a method gives to fit."
    caught = []
    monkeypatch.setattr(distillation, "fit", lambda m, examples, config, generator, *, objective, **k: caught.append(objective) or m)
    run(name, model, split, config)
    return caught[0]


def test_delete_removes_each_images_own_label(monkeypatch):
    "At the start student and teacher are one, and the divergence is −ln(1 − p_y): of the image's own label y, image by image."
    split = split_of("random")
    model = model_of("resnet10", split.train).eval()
    with torch.no_grad():
        model.fc.bias += torch.arange(10) / 5
    objective, own = caught_objective("delete", model, split, None, monkeypatch), split.train.labels[split.forget_train]
    assert len(own.unique()) > 1
    for r in range(len(own)):
        x = split.train.batch(split.forget_train[r : r + 1])
        loss, logits = objective(model, Batch(x, own[r : r + 1], torch.tensor([r]), torch.tensor(0.0)))
        assert torch.isclose(loss.detach(), -(1 - logits.detach().softmax(1)[0, own[r]]).log(), rtol=1e-3)


def test_head_distillation_removes_each_images_own_label(monkeypatch):
    split, shown = split_of("random"), []
    monkeypatch.setattr(distillation, "fit", lambda m, examples, *a, **k: shown.append(examples) or m)
    run("head_distillation", model_of("resnet10", split.train), split)
    (e,) = shown
    own = e.targets.gather(1, split.train.labels[e.indices][:, None])[:, 0]
    assert torch.equal(own == 0, torch.isin(e.indices, split.forget_train))


def test_head_distillation_gives_a_retained_image_none_of_several_forgotten_classes(monkeypatch):
    "And shares their probability among the others as the original has them."
    train, test = digits()
    split, shown = forget_class(train, test, ["three", "eight"]), []
    monkeypatch.setattr(distillation, "fit", lambda m, examples, *a, **k: shown.append(examples) or m)
    model = model_of("resnet10", train).eval()
    run("head_distillation", model, split)
    targets, left = shown[0].targets, [k for k in range(10) if k not in (3, 8)]
    assert (targets[:, [3, 8]] == 0).all()
    q = predict(model, train, shown[0].indices[:50]).softmax(1)[:, left]
    assert torch.allclose(targets[:50, left], q / q.sum(1, keepdim=True), atol=1e-5)


def test_maga_shows_each_image_the_noise_of_its_own_two_labels():
    "Of several forgotten classes, each image has the positive noise of its perturbing label and the negative noise of its own."
    split = split_of("random")
    model, c = model_of("resnet10", split.train).eval(), short("maga", classes=split.train.classes)
    labels, own = ranked_labels(model, split, c), split.train.labels[split.forget_train]
    banks = feature_noise_banks(model, split, labels, c.noise, generator())
    n = len(labels)
    noise = perturbed_examples(split, split.retain_train[:5], labels, c, banks).perturbation
    seen = noise.apply(torch.zeros(n, 3, 8, 8), torch.arange(n), torch.zeros(n, 2, dtype=torch.int64), torch.tensor(0.0))
    assert len(own.unique()) > 1
    for i in range(n):
        p, q = (bank.images[bank.classes.tolist().index(int(k))][0] for bank, k in zip(banks, (labels[i], own[i]), strict=True))
        assert torch.allclose(seen[i], c.alpha * p + (1 - c.alpha) * q, atol=1e-6), i


def test_learning_rates_number_by_number():
    c = FitConfig(10, lr=0.4, schedule="one_cycle", warmup=0.2)  # 200 steps, 40 of them rising
    rising, falling = [0.4 * (s + 1) / 40 for s in range(40)], range(40, 200)
    assert [c.lr_at(s, 20) for s in range(200)] == pytest.approx([*rising, *(0.4 * (200 - s) / 161 for s in falling)])
    cosine = [0.2 * (1 + math.cos(math.pi * (s - 39) / 161)) for s in falling]
    assert [replace(c, schedule="cosine").lr_at(s, 20) for s in range(200)] == pytest.approx([*rising, *cosine])
    steps = FitConfig(10, lr=1.0, schedule="step", milestones=(3, 5), gamma=0.1)
    assert [steps.lr_at(s, 20) for s in (0, 59, 60, 99, 100, 199)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_adamw_decays_the_weights_and_not_the_gradient():
    few, net = digits()[0].subset(torch.arange(16)), nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    config = FitConfig(2, 16, "adamw", lr=1e-2, weight_decay=0.5, schedule="constant", pad=0, flip=False)
    after, slow = fit(net, Examples.of(few), config, generator()), copy.deepcopy(net)
    step = torch.optim.AdamW(slow.parameters(), 1e-2, weight_decay=0.5)
    for _ in range(2):
        step.zero_grad()
        F.cross_entropy(slow(few.batch(torch.arange(16))), few.labels).backward()
        step.step()
    start, ours, theirs = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (net, after, slow))
    assert (ours - theirs).norm() < 1e-3 * (theirs - start).norm()


def test_the_loss_of_scrub(monkeypatch):
    "Away from the teacher on forget images; α times the divergence and γ times the cross entropy on retain images; at the temperature."
    split = split_of("class")
    teacher, student = (model_of("resnet10", split.train, seed).eval() for seed in (0, 1))
    objective = caught_objective("scrub", teacher, split, replace(short("scrub"), alpha=0.3, gamma=2.5, temperature=2.0), monkeypatch)
    n = len(split.forget_train)
    rows = torch.tensor([1, n, n + 3])
    images = torch.cat([split.forget_train, split.retain_train])[rows]
    x, y = split.train.batch(images), split.train.labels[images]
    loss, _ = objective(student, Batch(x, y, rows, torch.tensor(0.0)))
    with torch.no_grad():
        p, z = (teacher(x) / 2).softmax(1), student(x)
    away, wrong = 4 * (p * (p.log() - (z / 2).log_softmax(1))).sum(1), F.cross_entropy(z, y, reduction="none")
    want = (-away[0] + (0.3 * away[1:] + 2.5 * wrong[1:]).sum()) / 3
    assert torch.isclose(loss.detach(), want, rtol=1e-3)


def test_all_images_of_earlier_requests_are_measured_again(digit_sets):
    "A class, then thirty images of others: right on the thirty alone, and on nothing else that was forgotten."
    first = forget_class(*digit_sets, "three")
    second = after(forget_files(*digit_sets, (first.train.labels != 3).nonzero().flatten()[:30].tolist()), first)
    third = after(forget_class(*digit_sets, "seven"), second)
    wrong = (third.train.labels == 3).nonzero().flatten(), (third.test.labels == 3).nonzero().flatten()
    out = Outputs(*(said(images, 1.0, rows) for images, rows in zip((third.train, third.test), wrong, strict=True)))
    thirty = (third.train.labels[second.forget_train] != 7).sum().item()  # a seven of the thirty is forgotten with its class now
    gone = thirty + sum(map(len, wrong))
    assert measure(out, third).A_earlier == pytest.approx(100 * thirty / gone)
