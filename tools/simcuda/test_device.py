"""Does the pretended GPU refuse what a GPU refuses, allow what it allows, and compute what the CPU computes? Mistakes are planted, and seen."""

import copy
from dataclasses import replace

import device
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maga.data import Views, forget_class
from maga.measures.metrics import measure
from maga.models import small_network
from maga.sources import digits
from maga.training import Examples, FitConfig, fit

pytestmark = pytest.mark.cuda
GPU = "cuda"
a, c = torch.randn(4, 3, device=GPU), torch.randn(4, 3)
here, there = torch.tensor([0, 2], device=GPU), torch.tensor([0, 2])
on_cpu = torch.Generator().manual_seed(0)

REFUSED = {
    "sum": lambda: a + c,
    "sum, CPU first": lambda: c + a,
    "in place on the CPU": lambda: c.add_(a),
    "product": lambda: a @ c.T,
    "torch.cat of both": lambda: torch.cat([a, c]),
    "torch.stack with a CPU scalar": lambda: torch.stack([a[0, 0], torch.tensor(2.0)]),
    "a CPU mask": lambda: a.masked_fill(c > 0, 0.0),
    "torch.where": lambda: torch.where(a > 0, c, a),
    "labels on the CPU": lambda: F.cross_entropy(a, torch.tensor([0, 1, 2, 0])),
    "soft labels on the CPU": lambda: F.cross_entropy(a, c.softmax(1)),
    "weights on the CPU": lambda: nn.Linear(3, 2)(a),
    "a kernel on the CPU": lambda: nn.Conv2d(3, 4, 3)(torch.randn(1, 3, 8, 8, device=GPU)),
    "batch norm's statistics on the CPU": lambda: F.batch_norm(torch.randn(2, 3, 4, 4, device=GPU), torch.zeros(3), torch.ones(3)),
    "an embedding's rows": lambda: nn.Embedding(5, 3).to(GPU)(there),
    "a CPU tensor at GPU indices": lambda: c[here],
    "a CPU value at GPU indices": lambda: a.clone().__setitem__(here, c[:2]),
    "gather": lambda: a.gather(1, torch.zeros(4, 1, dtype=torch.int64)),
    "index_select": lambda: a.index_select(0, there),
    "isin": lambda: torch.isin(here, there),
    "equal": lambda: torch.equal(a, c),
    "two GPUs": lambda: a + a.to("cuda:1"),
    "a CPU generator: permutation": lambda: torch.randperm(4, generator=on_cpu, device=GPU),
    "a CPU generator: numbers": lambda: torch.rand(4, generator=on_cpu, device=GPU),
    "a CPU generator: multinomial": lambda: torch.multinomial(a.softmax(1), 1, generator=on_cpu),
    "numpy": lambda: a.numpy(),
    "numpy of both": lambda: np.histogram(a),
    "foreach": lambda: torch._foreach_lerp_([a.clone()], [c], 0.5),
    "attention": lambda: F.scaled_dot_product_attention(a[None, None], c[None, None], a[None, None]),
}
ALLOWED = {
    "a CPU scalar": lambda: a + torch.tensor(2.0),
    "a CPU scalar in place": lambda: a.clone().mul_(torch.tensor(2.0)),
    "GPU tensor at CPU indices": lambda: a[there],
    "a CPU scalar at GPU indices": lambda: a.clone().__setitem__(here, torch.tensor(2.0)),
    "there and back": lambda: a.cpu().to(GPU).cpu().numpy(),
    "a list": lambda: a.tolist(),
    "a slice by a GPU number": lambda: c[: here[1]],
    "text": lambda: f"{a} {a.sum():.2f}",
    "a copied module": lambda: copy.deepcopy(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).to(GPU))(a),
    "dropout": lambda: F.dropout(a, 0.5),
    "sorting": lambda: a.sort(stable=True),
    "one-hot": lambda: F.one_hot(here, 5),
    "a quantile": lambda: a.quantile(0.5, dim=0),
    "written through a view": lambda: a.clone()[0].fill_(7),
    "grown": lambda: torch.cat([a, a], out=torch.empty(0, device=GPU)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what):
    with pytest.raises((RuntimeError, TypeError, IndexError)):
        REFUSED[what]()


@pytest.mark.parametrize("what", ALLOWED)
def test_allowed(what):
    ALLOWED[what]()


def captured(function):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(torch.cuda.Stream()), torch.cuda.graph(graph):
        a + 1  # so that it is not empty
        out = function()
    return graph, out


def test_a_capture_has_no_effect_before_it_is_replayed():
    total, step, calls = torch.zeros(3, device=GPU), torch.ones(3, device=GPU), []
    graph, out = captured(lambda: (calls.append(1), total.add_(step), total * 2)[-1])
    assert total.tolist() == [0, 0, 0] and out.isnan().all()
    graph.replay()
    step.fill_(10.0)
    graph.replay()
    assert total.tolist() == [11, 11, 11] and out.tolist() == [22, 22, 22] and len(calls) == 1


def test_a_replay_draws_anew_and_keeps_the_cpus_state():
    x, before = torch.ones(1000, device=GPU), torch.get_rng_state()
    graph, out = captured(lambda: F.dropout(x, 0.5))
    graph.replay()
    first = out.clone()
    graph.replay()
    assert not torch.equal(first, out) and set(first.tolist()) == {0.0, 2.0} and torch.equal(before, torch.get_rng_state())


def test_a_replay_does_not_read_memory_that_is_gone():
    kept = [torch.ones(3, device=GPU)]
    graph, _ = captured(lambda: a[0] + kept[0])
    graph.replay()
    kept.clear()
    with pytest.raises(RuntimeError, match="nobody owns"):
        graph.replay()


@pytest.mark.parametrize(
    "wait",
    [
        lambda: a.sum().item(),
        lambda: a.cpu(),
        lambda: torch.tensor([1.0], device=GPU),
        lambda: a[a > 0],
        lambda: a.nonzero(),
        lambda: a[[0, 1]],
        lambda: bool((a > 0).any()),
        lambda: here.unique(),
        torch.cuda.synchronize,
    ],
)
def test_a_wait_inside_a_capture_is_refused(wait):
    usual = torch.cuda.current_stream()
    with pytest.raises(RuntimeError, match="captur"):
        captured(wait)
    assert torch.cuda.current_stream() is usual


@pytest.mark.parametrize("optimizer", ("sgd", "adamw"))
def test_the_numbers_are_the_cpus(optimizer):
    train = digits()[0].subset(torch.arange(200))
    config = FitConfig(1, 20, optimizer, lr=1e-2, pad=1, flip=False, amp=False, capture=False)
    ends = [fit(small_network(torch.Generator().manual_seed(0), norm=optimizer == "sgd"), Examples.of(s), config, torch.Generator()) for s in (train, train.to(GPU))]
    for p, q in zip(*(m.parameters() for m in ends), strict=True):
        assert q.is_cuda and torch.allclose(p, q.cpu(), atol=1e-5)


def test_images_that_the_device_has_no_room_for_stay_on_the_host(monkeypatch):
    train, test = (s.subset(torch.arange(n)) for s, n in zip(digits(), (200, 40), strict=True))
    config = FitConfig(2, 20, lr=1e-2, pad=1, amp=False)
    here = train.to(GPU)
    monkeypatch.setattr("maga.mapped.has_room", lambda nbytes, device="cpu": False)
    there = train.to(GPU)
    assert there.images is train.images and there.labels.is_cuda and there.device == here.device and there.digest == here.digest
    ends = [fit(small_network(torch.Generator().manual_seed(0)), Examples.of(s), config, torch.Generator()) for s in (here, there)]
    for p, q in zip(*(m.parameters() for m in ends), strict=True):
        assert q.is_cuda and torch.allclose(p, q, atol=1e-5)
    split = forget_class(train, test, "three").to(GPU)
    assert split.train.images is train.images
    moved = replace(split, train=here, test=replace(split.test, images=split.test.images.to(GPU)))
    assert measure(ends[1], split) == measure(ends[1], moved)
    assert torch.equal(split.train.subset(split.forget_train).batch(torch.arange(3, device=GPU)), moved.train.batch(split.forget_train[:3]))


# Mistakes in the package


def train_a_little(**changes):
    train = digits()[0].subset(torch.arange(200)).to(GPU)
    return fit(small_network(torch.Generator().manual_seed(0)), Examples.of(train), FitConfig(1, 20, lr=1e-2, pad=1, **changes), torch.Generator())


def test_a_forgotten_to_device_is_seen(monkeypatch):
    train_a_little()
    monkeypatch.setattr(Views, "to", lambda views, device: views)
    with pytest.raises((RuntimeError, IndexError), match="device"):
        train_a_little()


def test_a_wrong_generator_is_seen(monkeypatch):
    plain = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda n, generator: plain(n, generator=generator, device=GPU))
    with pytest.raises(RuntimeError, match="generator"):
        train_a_little()


def test_a_mixed_cat_is_seen(monkeypatch):
    from maga.methods import contract

    train, test = (s.to(GPU) for s in digits())
    contract.forget_then_retain(forget_class(train, test, "three"))
    plain = torch.cat
    monkeypatch.setattr(torch, "cat", lambda parts, *more: plain([parts[0].cpu(), *parts[1:]], *more))
    with pytest.raises(RuntimeError, match="same device"):
        contract.forget_then_retain(forget_class(train, test, "three"))


def test_waits_are_counted_where_they_are():
    from maga.measures.metrics import accuracy

    with device.waited() as waits:
        accuracy(a, torch.zeros(4, dtype=torch.int64, device=GPU))
    ((place, what),) = waits
    assert place.startswith("measures/metrics.py") and what == "_local_scalar_dense" and waits[place, what] == 1
