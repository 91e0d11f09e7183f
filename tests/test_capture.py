"""Captured steps: what is allowed into one, and that a replay does what an eager step does. Tests marked `cuda` need a GPU or `make simcuda`."""

import gc
import random
import warnings
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from maga import capture, training
from maga.capture import Replayed, may_be_captured, tensors_only
from maga.data import MagaError
from maga.device import seeded
from maga.models import small_network
from maga.sources import digits
from maga.training import Examples, FitConfig, cross_entropy, fit

from .conftest import generator

FEW = digits()[0].subset(torch.arange(206))  # ten batches of 20, and one of 6
FITS = {
    "momentum, an odd last batch": FitConfig(2, 20, lr=0.02, pad=1, flip=True, amp=False),
    "adam, averaged, no views": FitConfig(2, 20, "adam", lr=1e-3, schedule="cosine", pad=0, flip=False, average=0.9, amp=False),
    "adamw, frozen": FitConfig(2, 20, "adamw", lr=1e-3, schedule="step", milestones=(1,), pad=1, freeze_batch_norm=True, amp=False),
    "averaged": FitConfig(2, 20, lr=1e-2, momentum=0.0, schedule="constant", average=0.8, amp=False),
    "bfloat16": FitConfig(2, 20, lr=1e-2, amp=True),
}


def on_a_gpu(test):
    return pytest.mark.cuda(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test))


def where_a_failed_capture_heals(test):
    "Before torch 2.13 it spoils the memory and the random numbers of its process on a real card, and with them the tests that follow."
    old = torch.__version__ < torch.torch_version.TorchVersion("2.13")
    real = torch.cuda.is_available() and torch.cuda.get_device_name() != "Pretended GPU"
    return pytest.mark.skipif(old and real, reason="before torch 2.13 a failed capture spoils the process")(test)


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.GELU(), nn.Dropout(0.3), nn.Linear(24, 10))

    def forward(self, x):
        return self.body(x)


def made(kind="cnn"):
    if kind == "cnn":
        return small_network(generator())
    with seeded(generator()):
        return Dropping()


def fitted(config, device="cuda", kind="cnn", **more):
    return fit(made(kind), Examples.of(FEW.to(device)), config, generator(), **more)


def apart(a, b):
    return max((p.cpu() - q.cpu()).abs().max().item() for p, q in zip(a.parameters(), b.parameters(), strict=True))


def agree(a, b, kind="cnn"):
    "Two fits of one model: bit for bit where kernels are those of the CPU, else within a small part of the way that they went."
    pretended = torch.cuda.get_device_name() == "Pretended GPU"
    return apart(a, b) <= (0 if pretended else 0.05 * apart(a, made(kind)))


@pytest.fixture
def replays(monkeypatch):
    "Counts replays; a capture pays from the first step on."
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(training, "PAYS_FROM", 0)
    count, plain = [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (count.append(1), plain(graph))[1])
    return count


def test_only_marked_functions_may_be_captured():
    assert may_be_captured(None, cross_entropy) and may_be_captured(tensors_only(lambda model: None))
    assert not may_be_captured(cross_entropy, lambda model: None)


def test_seeding_the_cpu_leaves_every_gpu_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", asked.append)
    monkeypatch.setattr(torch.cuda, "manual_seed", asked.append)
    with seeded(generator(), "cpu"):
        assert torch.equal(torch.rand(3), torch.rand(3, generator=generator(int(torch.randint(2**62, (1,), generator=generator())))))
    assert not asked


@on_a_gpu
def test_seeding_restores():
    devices = range(torch.cuda.device_count())
    for where in ("cpu", *(f"cuda:{i}" for i in devices)):
        before = torch.get_rng_state(), *(torch.cuda.get_rng_state(i) for i in devices)
        with seeded(generator(), where):
            first = torch.randn(3, device=where)
        with seeded(generator(), where):
            assert torch.equal(first, torch.randn(3, device=where))
        after = torch.get_rng_state(), *(torch.cuda.get_rng_state(i) for i in devices)
        assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


@on_a_gpu
@pytest.mark.parametrize("what", FITS)
@pytest.mark.parametrize("kind", ("cnn", "dropout"))
def test_captured_fits_are_eager_ones(what, kind, replays, recwarn):
    "Momentum and averages exist before the capture, dropout draws anew, the rate changes, odd batches run between the replays."
    captured = fitted(FITS[what], kind=kind)
    assert len(replays) == 2 * 10 - Replayed.WARM and not [w for w in recwarn if "captur" in str(w.message)]
    assert agree(captured, fitted(replace(FITS[what], capture=False), kind=kind), kind)


@on_a_gpu
def test_the_second_gpu(replays, monkeypatch):
    "While the first is the current one: there is one stream for two fits, and it is the images' device's."
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    capture._side_stream.cache_clear()
    streams, plain = [], torch.cuda.Stream
    monkeypatch.setattr(torch.cuda, "Stream", lambda device=None, **more: (streams.append(device), plain(device, **more))[1])
    config = FITS["momentum, an odd last batch"]
    captured, _ = (fitted(config, "cuda:1") for _ in range(2))
    assert [str(d) for d in streams if d is not None] == ["cuda:1"] and replays and torch.cuda.current_device() == 0
    assert all(p.device == torch.device("cuda:1") for p in captured.parameters())
    assert agree(captured, fitted(replace(config, capture=False), "cuda:1"))


@tensors_only
def waiting(model, batch):
    loss, logits = cross_entropy(model, batch)
    return loss * (2.0 if loss.item() > 1e9 else 1.0), logits


@on_a_gpu
@where_a_failed_capture_heals
def test_a_failed_capture_leaves_nothing_behind(replays):
    "The steps go on eagerly, and the usual stream is the current one."
    usual, config = torch.cuda.current_stream(), FITS["adam, averaged, no views"]
    try:
        with pytest.warns(UserWarning, match="cannot be captured"):
            after = fitted(config, objective=waiting)
    except MagaError as e:  # a torch that cannot go on says so
        assert "capture=False" in str(e)
    else:
        assert not replays and agree(after, fitted(config))
    assert torch.cuda.current_stream() == usual


COINS = {"torch": lambda: torch.rand(1).item(), "Python": random.random, "NumPy": lambda: np.random.rand()}


class Stochastic(nn.Module):
    "Stochastic depth whose coin is thrown on the CPU."

    def __init__(self, coin):
        super().__init__()
        self.first, self.deep, self.last, self.coin, self.thrown = nn.Linear(192, 24), nn.Linear(24, 24), nn.Linear(24, 10), coin, []

    def forward(self, x):
        x = self.first(x.flatten(1)).relu()
        self.thrown.append(self.coin() < 0.5)
        return self.last(x + self.deep(x) if self.thrown[-1] else x)


@on_a_gpu
@pytest.mark.parametrize("name", COINS)
def test_a_coin_on_the_cpu_is_not_captured(name, replays):
    "A graph would hold one side of it for good."
    config = FITS["averaged"]
    with pytest.warns(UserWarning, match="random numbers on the CPU"):
        after = fit(Stochastic(COINS[name]), Examples.of(FEW.to("cuda")), config, generator())
    assert not replays and len(set(after.thrown)) == 2


class Centred(nn.Module):
    "A network that does more than compute with tensors: it replaces a buffer, or counts its calls."

    def __init__(self, counts: bool):
        super().__init__()
        self.first, self.last, self.counts, self.calls = nn.Linear(192, 24), nn.Linear(24, 10), counts, 0
        self.register_buffer("centre", torch.zeros(24))

    def forward(self, x):
        z = self.first(x.flatten(1))
        if self.counts:
            self.calls += 1
        else:
            self.centre = 0.9 * self.centre + 0.1 * z.detach().float().mean(0)
        return self.last((z - self.centre).relu() * min(1, self.calls / 9 if self.counts else 1))


@on_a_gpu
@pytest.mark.parametrize("counts", [False, True])
def test_a_network_that_python_changes_is_not_captured(counts, replays):
    "A graph would write into memory that nobody owns any more, or stay at one number."
    config = FITS["averaged"]
    with seeded(generator()):
        model = Centred(counts)
    with pytest.warns(UserWarning, match="calls of the network is changed by Python" if counts else "centre of the network is changed by Python"):
        after = fit(model, Examples.of(FEW.to("cuda")), config, generator())
    plain = fit(model, Examples.of(FEW.to("cuda")), replace(config, capture=False), generator())
    assert not replays and apart(after, plain) == 0


@on_a_gpu
@where_a_failed_capture_heals
def test_a_torch_that_cannot_go_on_says_so(replays, monkeypatch):
    def stuck(*size, **more):
        raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")

    monkeypatch.setattr(torch, "rand", stuck)
    with pytest.raises(MagaError, match="capture=False"):
        fitted(replace(FITS["averaged"], pad=0, flip=False), objective=waiting)


class Enough(Exception):
    pass


@on_a_gpu
def test_python_in_a_step_is_not_captured(replays):
    "A counter counts every step, and an exception ends the run where it is raised."
    steps = []
    fitted(FITS["averaged"], after_step=lambda model: steps.append(1))
    assert len(steps) == 2 * 11 and not replays

    def stop(model):
        steps.append(1)
        if len(steps) == 30:
            raise Enough

    with pytest.raises(Enough):
        fitted(FITS["averaged"], after_step=stop)
    assert len(steps) == 30


@on_a_gpu
def test_few_steps_are_not_captured(replays, monkeypatch):
    "And Adam, which would have to be capturable, does not warn."
    monkeypatch.setattr(training, "PAYS_FROM", 23)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(FITS["adamw, frozen"])
    assert not replays


@on_a_gpu
def test_the_graph_is_released_with_the_steps(replays, monkeypatch):
    graphs, plain = [], torch.cuda.CUDAGraph

    class Watched(plain):
        def __init__(self, *more):
            super().__init__(*more)
            graphs.append(weakref.ref(self))

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Watched)
    gc.disable()  # so that nothing is kept by a circle either
    try:
        fitted(FITS["averaged"])
        assert len(graphs) == 1 and graphs[0]() is None
    finally:
        gc.enable()
