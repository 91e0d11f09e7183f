"""What makes MaGA fast must not change it: early stopping, activations computed again, memory bounded."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from maga import benchmark
from maga.data import MagaError, forget_class
from maga.memory import LivingBytes, recomputing, vit_bytes, vit_step_gb
from maga.methods.contract import METHODS
from maga.methods.noise import NoiseConfig, make_noise
from maga.models import ModelSpec
from maga.sources import digits
from maga.training import Examples, FitConfig, fit

from .conftest import generator

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


def test_noise_of_a_class_by_its_name(digit_sets, original):
    by = [make_noise(original, digit_sets[0], classes, 1, NoiseConfig(size=2, steps=1), generator()) for classes in (["three"], [3])]
    assert torch.equal(by[0].images, by[1].images) and by[0].classes.tolist() == [3]


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


def test_the_set_up_of_a_retrain_counts_once(monkeypatch):
    "A retrain is extrapolated from one epoch and three: here set-up takes 5 seconds and an epoch 2."

    def seconds(work, device):
        result = work()
        return result, 5 + 2 * work.args[0] if isinstance(work, partial) else 1.0

    monkeypatch.setattr(benchmark, "clocked", seconds)
    few = forget_class(*(s.subset(torch.arange(200)) for s in digits()), "three")
    table = benchmark.stage_times(ModelSpec.of("small_cnn", few.train), few, "digits", FitConfig(7, 32, lr=0.05, pad=0, flip=False))
    assert table.set_index("stage").seconds["true retrain"] == 5 + 2 * 7


def test_the_benchmark_leaves_out_a_method_without_the_preset(monkeypatch):
    here = {name: METHODS[name] for name in ("retrain", "finetune")}
    odd = replace(METHODS["finetune"], name="odd", presets={"mine": METHODS["finetune"].preset("digits")}, sources={})
    monkeypatch.setattr(benchmark, "METHODS", here | {"odd": odd})
    monkeypatch.setitem(METHODS, "odd", odd)
    said, few = [], forget_class(*(s.subset(torch.arange(200)) for s in digits()), "three")
    spec, brief = ModelSpec.of("small_cnn", few.train), FitConfig(1, 32, lr=0.05, pad=0, flip=False)
    assert benchmark.method_times(spec, few, "digits", brief, say=said.append).method.tolist() == ["retrain", "finetune"]
    assert len(said) == 1 and "odd is left out" in said[0]
    with pytest.raises(MagaError, match="no preset"):
        benchmark.method_times(spec, few, "digits", brief, ["odd"])


def test_the_ceiling_is_rounded_as_convolutions_are(monkeypatch):
    "On a GPU convolutions of float32 numbers are TF32, so a product that is not is no limit for them."
    seen, plain = [], benchmark.in_turns
    monkeypatch.setattr(benchmark, "in_turns", lambda *given: (seen.append(torch.backends.cuda.matmul.allow_tf32), plain(*given))[1])
    benchmark.matmul_peak(torch.device("cpu"), torch.float32, 8)
    assert seen == [torch.backends.cudnn.allow_tf32] and not torch.backends.cuda.matmul.allow_tf32
    monkeypatch.setattr(benchmark, "matmul_peak", lambda device, dtype: 4e12)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    said, spec = [], ModelSpec.of("small_cnn", digits()[0])
    of = [benchmark.Comparison(f"pretraining, small_cnn, batch 2{half}", 1.0, 2.0, "images/s") for half in ("", ", bfloat16")]
    for where in ("cpu", "cuda"):
        benchmark.say_peak(of, spec, torch.device(where), said.append)
    assert [line.split()[3] for line in said] == ["float32", "bfloat16", "TF32", "bfloat16"]
