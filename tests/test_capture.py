"""Captured steps: what is allowed into one, and that a replay does what an eager step does. Tests marked `cuda` need a GPU or `make simcuda`."""


import torch

from maga.capture import may_be_captured, tensors_only
from maga.device import seeded
from maga.training import cross_entropy

from .conftest import generator


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
