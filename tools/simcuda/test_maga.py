"""The package on the pretended GPU: captured steps are eager ones bit for bit, the second device, a failed capture, splits, waits, judges, a table."""

import dataclasses
from dataclasses import replace

import device
import pandas as pd
import pytest
import torch

import tools.gpu as gpu
from maga import training
from maga.data import forget_class
from maga.experiments.__main__ import main
from maga.judges.contract import ask_all, draw_exemplars
from maga.judges.families import tiny_vlm
from maga.judges.mmicl import tiny_mmicl
from maga.judges.named import JudgeOptions, make_judge
from maga.judges.tiny import SIDE, tiny_clip, tiny_encoder
from maga.measures.attacks import RelearnConfig, probe_logits, relearn
from maga.measures.metrics import Outputs, measure
from maga.methods.contract import METHODS
from maga.methods.restart import Distil
from maga.models import ModelSpec, load_checkpoint, save_checkpoint, small_network
from maga.sources import digits
from maga.training import Examples, FitConfig, fit
from tests.test_methods import maker
from tests.test_steps import PAIRS, TASKS, small_config, small_split, with_fits

pytestmark = pytest.mark.cuda
GPU = torch.device("cuda:0")
few = digits()[0].subset(torch.arange(206))
AVERAGED = FitConfig(2, 20, lr=1e-2, momentum=0.0, schedule="constant", average=0.8)


def g(seed=0):
    return torch.Generator().manual_seed(seed)


def same(a, b):
    return all(torch.equal(p.cpu(), q.cpu()) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture(autouse=True)
def _few_steps_pay(monkeypatch):
    monkeypatch.setattr(training, "PAYS_FROM", 0)


@pytest.mark.parametrize(("name", "task"), PAIRS)
def test_captured_steps_are_eager_ones(name, task):
    "And they are the CPU's within rounding; the caller's model and the usual stream stay as they were."
    captured_and_eager(name, task)


def captured_and_eager(name, task, **changes):
    split, method = small_split(task), METHODS[name]
    make, config = maker("small_cnn", split.train), replace(small_config(name, task, split), **changes)
    model, usual = make(g()), torch.cuda.current_stream()
    there = make(g()).to(GPU)
    replays, failures = device.replays[0], len(device.failures)
    captured = method(there, split.to(GPU), config, g(1))
    assert device.replays[0] > replays and len(device.failures) == failures
    eager = method(there, split.to(GPU), with_fits(config, capture=False), g(1))
    assert same(captured, eager) and same(model, there) and torch.cuda.current_stream() is usual


@pytest.mark.parametrize("task", TASKS)
def test_a_captured_step_with_a_teacher(task):
    captured_and_eager("restart", task, head="fresh", distil=Distil())


@pytest.mark.parametrize("task", TASKS)
def test_splits(task):
    here = small_split(task)
    there = here.to(GPU)
    assert there.digest == here.digest and str(there) == str(here)
    for part in ("forget_train", "forget_test", "retain_train", "retain_test"):
        assert getattr(there, part).is_cuda and torch.equal(getattr(there, part).cpu(), getattr(here, part))
    assert there.forbidden_labels().is_cuda


# Waits


def test_a_probe_waits_twice_an_evaluation():
    labels = torch.randint(7, (300,), generator=g())
    features = torch.randn(7, 24, generator=g())[labels] + 2 * torch.randn(300, 24, generator=g())
    with device.waited() as waits:
        on_gpu = probe_logits(features.to(GPU), labels.to(GPU), features[:50].to(GPU), 8)
    print("waits of a linear probe:", waits.total(), dict(waits))
    assert waits.total() <= 300 and (on_gpu.cpu().argmax(1) == probe_logits(features, labels, features[:50], 8).argmax(1)).all()


def test_relearning_reads_many_looks_at_once():
    split, model = small_split("class"), small_network(g())
    config = RelearnConfig(max_steps=90, every=1, forget_batch=8, retain_batch=8)
    model_there, split_there = small_network(g()).to(GPU), split.to(GPU)
    with device.waited() as waits:
        there = relearn(model_there, split_there, 101.0, config, g())
    print("waits of relearning, 90 looks:", waits.total(), dict(waits))
    assert waits.total() <= 12 and len(there.steps) == len(there.accuracy) == 91
    here = relearn(model, split, 101.0, config, g())
    assert there.accuracy == pytest.approx(here.accuracy, abs=10)


def test_an_evaluation_waits_a_dozen_times():
    train, test = digits()
    split = forget_class(train.to(GPU), test.to(GPU), "three")
    out = Outputs.of(small_network(g()).to(GPU), split)
    _ = split.retain_test, split.retain_train
    with device.waited() as waits:
        there = measure(out, split)
    print("waits of an evaluation:", waits.total(), dict(waits))
    assert waits.total() <= 12
    here = measure(Outputs(out.train.cpu(), out.test.cpu()), split.to("cpu"))
    assert dataclasses.asdict(there) == pytest.approx(dataclasses.asdict(here), nan_ok=True)


def test_statistics_of_batch_norm_do_not_wait():
    config = replace(AVERAGED, epochs=1)
    with device.waited() as with_average:
        fit(small_network(g()), Examples.of(few.to(GPU)), config, g())
    with device.waited() as without:
        fit(small_network(g()), Examples.of(few.to(GPU)), replace(config, average=0.0), g())
    assert with_average.total() <= without.total() + 5


# Models


def test_a_checkpoint(tmp_path):
    spec = ModelSpec.of("small_cnn", few)
    model = spec.make(g()).to(GPU)
    again, _ = load_checkpoint(save_checkpoint(tmp_path / "m.safetensors", model, spec), device=GPU)
    assert all(p.is_cuda for p in again.parameters()) and same(model, again)


JUDGES = {
    "features": lambda folder: "features",
    "vlm": lambda folder: f"vlm:{tiny_vlm('qwen3_vl', folder, g())}",
    "internvl": lambda folder: f"vlm:{tiny_vlm('internvl', folder, g())}",
    "mmicl": lambda folder: f"mmicl:{tiny_mmicl(folder, g())}",
    "clip": lambda folder: f"clip:{tiny_clip('clip', folder, g())}",
    "siglip": lambda folder: f"clip:{tiny_clip('siglip', folder, g())}",
    "names": lambda folder: f"names:{tiny_encoder(folder, g())}",
    "random": lambda folder: "random",
}


@pytest.mark.parametrize("kind", JUDGES)
def test_a_judge_of_each_family(kind, tmp_path):
    "It says on the GPU what it says on the CPU."
    name, exemplars = JUDGES[kind](tmp_path), draw_exemplars(digits()[0], 2, g())
    said = []
    for where in (torch.device("cpu"), GPU):
        options = JudgeOptions(device=str(where), batch_size=8, size=SIDE, dtype="float32")
        judge = make_judge(name, exemplars.to(where), small_network(g()).to(where), options)
        said.append(ask_all(judge, exemplars.to(where), [1, 4]).confidence)
    assert torch.allclose(*said, atol=1e-4)


def test_judges_do_not_carry_features_to_the_host(tmp_path):
    exemplars = draw_exemplars(digits()[0], 2, g()).to(GPU)
    judge = make_judge(JUDGES["internvl"](tmp_path), exemplars, options=JudgeOptions(device="cuda:0", size=SIDE, dtype="float32"))
    with device.waited() as first:
        ask_all(judge, exemplars, [1])
    with device.waited() as second:
        ask_all(judge, exemplars, [2])
    carried = sum(n for (place, what), n in first.items() if place.startswith("judges/scorers.py") and what == "device to host")
    print("waits of a judge, one concept, 20 images:", first.total(), "and another:", second.total())
    assert carried <= 2 and second.total() < first.total()
    assert all(f.features.is_cuda for f in judge.bank.seen.values())


@pytest.mark.parametrize("where", ("cuda", "cuda:1"))
def test_a_table(where, tmp_path):
    line = ["table6", "--preset", "smoke", "--backbone", "small_cnn", "--target", "rocket", "--methods", "original,retrain,random_label,maga"]
    assert main([*line, "--device", where, "--results", str(tmp_path), "--processes", "1"]) == 0
    everything = pd.read_parquet(tmp_path / "all.parquet")
    assert len(everything) and everything.error.isna().all(), everything.error.dropna().tolist()
    assert (everything.device == "Pretended GPU").all()


def test_make_gpu_goes_through_a_tiny_grid_and_continues(tmp_path, capsys):
    line = ["--preset", "smoke", "--results", str(tmp_path), "--backbone", "small_cnn", "--target", "rocket", "--methods", "retrain,random_label"]
    assert gpu.main([*line, "--stages", "table6", "--minutes", "0.01"]) == 1
    interrupted = (tmp_path / "gpu.log").read_text()
    assert "Pretended GPU" in interrupted and " rows left" in interrupted and "nothing is left" not in interrupted
    assert gpu.main([*line, "--stages", "table6"]) == 0
    rows = pd.read_parquet(tmp_path / "all.parquet")
    assert (tmp_path / "gpu.log").read_text().endswith("nothing is left\n") and rows.error.isna().all() and (tmp_path / "table6" / "table.csv").exists()
