"Modules that keep something that is no tensor in their state (`get_extra_state`), as quantised layers do."

from dataclasses import replace

import pytest
import torch
from torch import nn

from maga.adapter import floats
from maga.data import forget_class
from maga.judges.transition import TransitionMatrix
from maga.measures.connectivity import l2_distance, set_between
from maga.methods.contract import METHODS, get_method
from maga.models import ModelSpec, load_checkpoint, save_checkpoint
from maga.own import retrains
from maga.sources import digits
from maga.training import FitConfig


class Counted(nn.Linear):
    told = None

    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        self.told = state


def network(generator=None):
    if generator is not None:
        torch.manual_seed(generator.initial_seed())
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), Counted(16, 10))


@pytest.fixture
def split():
    return forget_class(*digits(), "three")


def test_retrains_are_kept_and_read_again(split, tmp_path, monkeypatch):
    brief = FitConfig(epochs=1, lr=0.1)
    (made,) = retrains.trained_retrains(network(), network, split, 1, brief, tmp_path)
    monkeypatch.setattr(retrains, "fit", lambda *a, **k: pytest.fail("trained again"))
    (read,) = retrains.trained_retrains(network(), network, split, 1, brief, tmp_path)
    assert torch.equal(made[-1].weight, read[-1].weight) and len(list(tmp_path.iterdir())) == 1


def test_a_checkpoint_holds_the_tensors(split, tmp_path):
    spec, model = ModelSpec.of("small_cnn", split.train), network()
    file = save_checkpoint(tmp_path / "own.safetensors", model, spec)
    read, _ = load_checkpoint(file, spec, model=network())
    assert torch.equal(read[-1].weight, model[-1].weight)


def test_points_between_two_networks(split):
    one, other, between = network(), network(), network()
    assert l2_distance(one, other) > 0
    set_between(between, one, other, 0.5)
    assert torch.allclose(between[-1].weight, (one[-1].weight + other[-1].weight) / 2)
    assert list(floats(one)) == [f"{n}.{k}" for n in (1, 3, 5) for k in ("weight", "bias")]


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"retrain"}))
def test_methods_keep_it(name, split):
    model, method = network(), get_method(name)
    config = method.preset("digits" if "digits" in method.presets else next(iter(method.presets)))
    if hasattr(config, "transition"):
        config = replace(config, transition=TransitionMatrix.from_similarity(torch.ones(10, 10) + torch.eye(10), split.train.classes))
    made = method(model, split, config, torch.Generator().manual_seed(0))
    assert made[-1].get_extra_state() == {"version": 3} and not torch.equal(made[-1].weight, model[-1].weight)
