"""Checkpoints on full and broken disks, the provided checkpoint, a user's own network, and steps on a GPU."""

import resource
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import maga
from maga.data import MagaError
from maga.measures.metrics import accuracy, predict
from maga.methods.contract import get_method
from maga.models import ModelSpec, load_checkpoint, save_checkpoint
from maga.sources import digits, load
from maga.training import PRETRAINING, Examples, FitConfig, fit

from .conftest import generator
from .forked import Forked


def written_twice(path, limit):
    "Write a checkpoint, and again when no file may be larger than the limit in bytes."
    spec = ModelSpec.of("resnet10", digits()[0])
    model = spec.make(generator())
    save_checkpoint(path, model, spec)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        save_checkpoint(path, model, spec, note="second")
    except MagaError as e:
        print(e)
        return 1


def test_full_disk_leaves_the_old_checkpoint(tmp_path):
    "A real limit on file size, in a process of its own: the write fails, the earlier file stays, nothing else is left."
    path = tmp_path / "model.safetensors"
    done = Forked(written_twice, path, 100_000).ended()
    assert done.returncode == 1 and "could not be written" in done.stdout and "nothing was changed" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    load_checkpoint(path)


def test_checkpoint_of_other_classes(tmp_path, original, digit_sets):
    train = digit_sets[0]
    spec = ModelSpec.of("resnet10", train)
    path = save_checkpoint(tmp_path / "m.safetensors", original, spec)
    model, found = load_checkpoint(path)
    assert found == spec and all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), original.state_dict().values(), strict=True))
    with pytest.raises(MagaError, match="The model knows 10 classes"):
        found.view(train.coarse())
    with pytest.raises(MagaError, match="does not hold a resnet10 with 5 classes"):
        load_checkpoint(path, ModelSpec.of("resnet10", train.coarse()))
    with pytest.raises(MagaError, match="cannot be read"):
        load_checkpoint(tmp_path / "nothing.safetensors")


def test_the_provided_checkpoint(real_data):
    file = real_data.parent / "checkpoints" / "resnet18-cifar100.safetensors"
    if not file.exists():
        pytest.skip("no checkpoint of a ResNet-18 lies beside the data")
    _, test = load("cifar100", real_data)
    model, _ = load_checkpoint(file, ModelSpec.of("resnet18", test))
    some = torch.arange(512)
    assert 70 < accuracy(predict(model, test, some), test.labels[some]) < 81


class Own(nn.Module):
    "A network as a user might have it: no convolution, dropout, a name of its own for everything."

    def __init__(self, k=10):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.GELU(), nn.Dropout(0.1), nn.LayerNorm(64))
        self.classify = nn.Linear(64, k)

    def forward(self, x):
        return self.classify(self.body(x))


def test_a_users_own_module(split, transition):
    torch.manual_seed(0)
    train = split.train
    model = fit(Own(), Examples.of(train), replace(PRETRAINING["digits"], lr=0.05, epochs=8), generator())
    before = accuracy(predict(model, split.test, split.forget_test), split.test.labels[split.forget_test])
    unlearned = get_method("maga")(model, split, get_method("maga").preset("digits", transition=transition), generator())
    after = accuracy(predict(unlearned, split.test, split.forget_test), split.test.labels[split.forget_test])
    assert before > 80 and after < 20


def test_frozen_parameters_stay_frozen(digit_sets):
    model = Own()
    model.body.requires_grad_(False)
    after = fit(model, Examples.of(digit_sets[0]), replace(PRETRAINING["digits"], epochs=1), generator())
    assert torch.equal(after.body[1].weight, model.body[1].weight) and not torch.equal(after.classify.weight, model.classify.weight)
    assert not after.body[1].weight.requires_grad and after.classify.weight.requires_grad


def test_progress_is_told(digit_sets):
    reports = []
    config = FitConfig(2, 64, lr=0.01, pad=0, flip=False)
    fit(Own(), Examples.of(digit_sets[0]), config, generator(), progress=reports.append)
    steps = 2 * -(-len(digit_sets[0]) // 64)
    assert reports[-1].done == reports[-1].total == steps and reports[-1].epoch == 2
    assert [r.done for r in reports] == sorted({r.done for r in reports}) and all(r.images_per_second > 0 for r in reports)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_captured_steps_agree_with_eager_ones(optimizer):
    train = digits()[0].to("cuda")
    base = ModelSpec.of("resnet10", train).make(generator())
    config = FitConfig(3, 32, optimizer, lr=1e-3, schedule="cosine", pad=1, flip=False, amp=False)
    torch.backends.cudnn.deterministic = True
    captured, eager, on_cpu = (
        fit(base, Examples.of(images), replace(config, capture=capture), generator()).cpu()
        for images, capture in ((train, True), (train, False), (train.to("cpu"), False))
    )
    moved = max((a - b).abs().max() for a, b in zip(base.parameters(), eager.parameters(), strict=True))
    for a, b, c in zip(captured.parameters(), eager.parameters(), on_cpu.parameters(), strict=True):
        assert (a - b).abs().max() < 0.02 * moved and (a - c).abs().max() < 0.2 * moved


def test_the_first_names_are_loaded_when_used():
    "`import maga` takes no torch; every listed name is there, and a mistyped one gets its nearest."
    program = "import sys, maga; assert 'torch' not in sys.modules; [getattr(maga, name) for name in dir(maga)]; print(*dir(maga))"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {"load", "forget_class", "fit", "get_method", "measure", "evaluate"} <= set(shown)
    with pytest.raises(AttributeError, match="nearest names are forget_class"):
        maga.forget_clas  # noqa: B018
    with pytest.raises(ImportError, match="forget_clas"):
        from maga import forget_clas  # noqa: F401
