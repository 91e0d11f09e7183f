"""What waits for the device, waits seldom: the rewritten attacks and metrics give what the plain ones give."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from maga.measures import attacks
from maga.measures.attacks import RelearnConfig, probe_logits, relearn
from maga.measures.metrics import batch_mean_accuracy
from maga.training import PRETRAINING, Examples, fit

from .conftest import generator


def plain_probe(known, labels, tested, k, penalty=1e-3):
    "Everything on the device: L-BFGS reads a number for each pair of its history at every iteration."
    mean, scale = known.mean(0), known.std(0) + 1e-6
    x, weight, bias = (known - mean) / scale, torch.zeros(known.shape[1], k, requires_grad=True), torch.zeros(k, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss():
        solver.zero_grad()
        value = nn.functional.cross_entropy(x @ weight + bias, labels) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return ((tested - mean) / scale @ weight + bias).detach()


def test_the_probe_is_the_plain_one_bit_for_bit():
    g = generator()
    labels = torch.randint(7, (300,), generator=g)
    features = torch.randn(7, 24, generator=g)[labels] + 2 * torch.randn(300, 24, generator=g)
    assert torch.equal(probe_logits(features, labels, features[:50], 8), plain_probe(features, labels, features[:50], 8))


def test_looks_that_are_read_together_give_the_same_curve(monkeypatch, split, original):
    "Also where the class comes back between two readings, at once, or never."
    without = fit_without_three(split, original)
    for target in (30.0, 1.0, -1.0, 101.0):
        config = RelearnConfig(max_steps=20, every=2)
        monkeypatch.setattr(attacks, "LOOKS_AT_ONCE", {})
        one_by_one = relearn(without, split, target, config, generator())
        monkeypatch.setattr(attacks, "LOOKS_AT_ONCE", {"cpu": 4})
        assert relearn(without, split, target, config, generator()) == one_by_one and len(one_by_one.steps) == len(one_by_one.accuracy)


def fit_without_three(split, original):
    return fit(original, Examples.of(split.train, split.retain_train), replace(PRETRAINING["digits"], lr=0.3, epochs=2), generator())


def test_accuracies_of_batches_are_read_once():
    logits, labels = torch.randn(150, 5, generator=generator()), torch.randint(5, (150,), generator=generator(1))
    plain = 100 * float(np.mean([part.mean().item() for part in (logits.argmax(1) == labels).double().split(64)]))
    assert batch_mean_accuracy(logits, labels) == plain
