"""What makes MaGA fast must not change it: early stopping, activations computed again, memory bounded, runs taken up again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maga.memory import LivingBytes, vit_bytes, vit_step_gb
from maga.methods.noise import NoiseConfig, make_noise
from maga.models import ModelSpec, recomputing
from maga.training import Examples, FitConfig, fit

from .conftest import generator

ROOT = Path(__file__).resolve().parent.parent
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("amp", [True, False], ids=["bfloat16", "float32"])
def test_a_step_of_the_vit_fits_12_gb(digit_sets, amp):
    "32 images of 224 px; no less than weights, gradients and AdamW's state, and less when activations are computed again."
    kept, again = (vit_bytes(digit_sets[0], amp, recompute) for recompute in (False, True))
    assert 4 * 4 * 85e6 < again < 0.7 * kept and kept < 12e9


def test_nothing_holds_the_resized_data(digit_sets):
    "Training at 224 px on 8 × 8 images: what lives at most is far less than the images resized."
    images = digit_sets[0].subset(torch.arange(480))
    spec = ModelSpec("vit_tiny", images.classes, 224)
    view, model = spec.view(images), spec.make(generator())
    with LivingBytes() as memory:
        fit(model, Examples.of(view), FitConfig(1, 16, lr=1e-3, pad=0, flip=False), generator())
    assert view.images.shape[-2:] == (8, 8) and memory.peak < 4 * 3 * 224**2 * len(images) / 5


def test_a_class_stops_by_itself(digit_sets, original):
    "However the bank is cut into chunks and whichever classes stand before it, a class takes the same steps; without the threshold none leaves."
    train, config = digit_sets[0], NoiseConfig(size=8, stop=0.1)
    whole, cut = (make_noise(original, train, range(10), 1, c, generator()) for c in (config, NoiseConfig(size=8, stop=0.1, chunk=11)))
    assert whole.steps.tolist() == cut.steps.tolist() and len(set(whole.steps.tolist())) > 1
    assert torch.allclose(whole.images, cut.images, atol=1e-3)
    assert set(make_noise(original, train, range(10), -1, config, generator()).steps.tolist()) == {25}


def execute(folder):
    arguments = ("preset=smoke", "device=cpu", f"results={folder}", "seeds=0")
    line = [sys.executable, "tools/execute.py", "nbs/experiments/studies/fast.ipynb", str(folder / "fast.ipynb"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "JUPYTER_PLATFORM_DIRS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return {p.name.split("-")[0]: (p, p.stat().st_mtime_ns, json.loads(p.read_text())) for p in (folder / "fast" / "rows").glob("*.json")}


def test_the_comparison_is_taken_up_again(tmp_path):
    "A row that is there is left alone; one that is missing is computed again, to the same numbers."
    first = execute(tmp_path)
    assert set(first) == {"fast", "paper_resnet18"}
    first["fast"][0].unlink()
    second = execute(tmp_path)
    assert second["paper_resnet18"][1] == first["paper_resnet18"][1]
    assert all(second["fast"][2][k] == first["fast"][2][k] for k in ("A_r", "A_f", "steps per class"))
    assert first["fast"][2]["noise images per class"] * 4 == first["paper_resnet18"][2]["noise images per class"]


@pytest.mark.cuda
@on_cuda
def test_early_stopping_on_a_gpu(digit_sets, original):
    train = digit_sets[0].to("cuda")
    config = NoiseConfig(size=16, stop=0.1, amp=False)
    bank, never, plain = (
        make_noise(original, train, range(10), 1, c, generator())
        for c in (config, NoiseConfig(size=16, stop=1e-9, amp=False), NoiseConfig(size=16, amp=False))
    )
    assert set(bank.steps.tolist()) <= {5, 10, 15, 20, 25} and bank.steps.min() < 25
    assert (never.images - plain.images).abs().mean() < 1e-2 and never.steps.min() == 25


@pytest.mark.cuda
@on_cuda
def test_activations_computed_again_on_a_gpu(digit_sets):
    train = digit_sets[0].to("cuda")
    model = ModelSpec.of("vit_tiny", train).make(generator())
    config = FitConfig(1, 32, "adamw", lr=1e-3, pad=0, flip=False, capture=False, amp=False)
    one, two = (fit(m, Examples.of(train), config, generator()) for m in (model, recomputing(model)))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-2


@pytest.mark.cuda
@on_cuda
def test_the_vit_fits_12_gb_of_a_gpu(digit_sets):
    assert vit_step_gb(digit_sets[0], torch.device("cuda")) < 12
