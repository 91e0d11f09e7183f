"""What a GPU does and a CPU does not: work that is queued, memory that runs out, a device that breaks. Without one: calls of torch are replaced."""

import copy
import math
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from maga import capture
from maga.adapter import prepared
from maga.capture import Replayed
from maga.data import MagaError
from maga.experiments import runs
from maga.experiments import session as sessions
from maga.experiments.report import line_of, paper_numbers
from maga.experiments.runs import run, run_batch
from maga.experiments.session import Session, header_of, original_of, resolve, retrain_of, trained
from maga.experiments.settings import Cell
from maga.experiments.store import Row, Spec, Store
from maga.experiments.tables import show_times
from maga.mapped import placed, room
from maga.measures.contract import METRICS, Evidence, Subject, get_metric
from maga.measures.metrics import Outputs, measure
from maga.methods.contract import get_method
from maga.methods.noise import NoiseConfig
from maga.methods.relabelling import legacy_noise
from maga.models import ModelSpec, save_checkpoint
from maga.own import forgetting, retrains
from maga.own.forgetting import Forgotten, Plan, forget
from maga.own.report import record
from maga.own.retrains import trained_retrains
from maga.training import FitConfig

from .conftest import raising


def test_the_seconds_of_forgetting_begin_and_end_on_the_devices_clock(split, original, monkeypatch):
    "The evaluation before it is still queued on a GPU when Python comes here."
    looks, told = [], iter((10.0, 17.5))
    monkeypatch.setattr(forgetting, "clock", lambda device: (looks.append(device), next(told))[1])
    plan = SimpleNamespace(method=lambda model, *more: (looks.append("method"), copy.deepcopy(model))[1], config=None, make_model=None)
    assert forget(original, split, plan).seconds == 7.5
    assert looks == [split.device, "method", split.device]


def test_a_kept_retrain_that_the_device_has_no_room_for_is_not_trained_on(split, original, tmp_path, monkeypatch):
    "The file stays as it is; what cannot be read is trained from untrained weights, also where a part of it was read."
    make, brief = ModelSpec.of("resnet10", split.train).make, FitConfig(1, 128, lr=0.01, pad=0, flip=False)
    (first,) = trained_retrains(original, make, split, 1, brief, tmp_path)
    (file,) = tmp_path.glob("retrain_*")
    whole, read = file.read_bytes(), retrains._read_into
    with monkeypatch.context() as full:
        there = raising(torch.OutOfMemoryError("CUDA out of memory."))
        full.setattr(retrains, "_read_into", lambda *given: read(*given) and (full.setattr(torch.nn.Module, "to", there), True)[1])
        with pytest.raises(torch.OutOfMemoryError):
            trained_retrains(original, make, split, 1, brief, tmp_path)
    assert file.read_bytes() == whole
    state = {k: torch.full_like(v, 7) for k, v in load_file(file).items()}
    save_file(state | {"fc.weight": torch.zeros(3, 3)}, file)
    (again,) = trained_retrains(original, make, split, 1, brief, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert load_file(file)["fc.weight"].shape == (10, *load_file(file)["fc.weight"].shape[1:])


def test_a_report_names_the_gpu_that_was_used(split, original, tmp_path, monkeypatch):
    "On a machine with two of different kinds."
    file = save_checkpoint(tmp_path / "net.safetensors", original, ModelSpec.of("resnet10", split.train))
    measured = measure(Outputs.of(original, split), split)
    result = Forgotten(original, Plan(get_method("restart"), get_method("restart").preset("digits"), ""), measured, measured, {}, 1.0, 1.0, 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"the name of {device}")
    monkeypatch.setattr(type(split), "device", torch.device("cuda:1"))
    assert record(SimpleNamespace(source="x", weights=file, sha256="", crop=None), split, result, file, "r")["device"] == "cuda (the name of cuda:1)"


def test_all_recordings_of_a_device_share_a_stream(monkeypatch):
    "Until one fails: the next begins on a stream of its own."
    made = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(str(device)) or object())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    capture._side_stream.cache_clear()
    sides = [Replayed(len, torch.device(name)).side for name in ("cuda:0", "cuda:1", "cuda:0", "cuda")]
    assert made == ["cuda:0", "cuda:1"] and sides[0] is sides[2] is not sides[1] is sides[3]
    failed = Replayed(len, torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "stream", raising(RuntimeError("operation not permitted when stream is capturing")))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(capture, "_check_randomness", lambda device, why: None)
    with pytest.warns(UserWarning, match="cannot be captured"):
        failed._capture([])
    assert Replayed(len, torch.device("cuda:0")).side is not failed.side
    capture._side_stream.cache_clear()


def test_what_torch_keeps_on_a_gpu_is_room(monkeypatch):
    for name, said in (("mem_get_info", (1000, 8000)), ("memory_reserved", 5000), ("memory_allocated", 2000)):
        monkeypatch.setattr(torch.cuda, name, lambda device, said=said: said)
    assert room("cuda:0") == 4000


def test_images_that_a_gpu_has_no_room_for_stay_with_a_warning(monkeypatch):
    images = torch.zeros(1000, 3, 8, 8, dtype=torch.uint8)
    monkeypatch.setattr("maga.mapped.has_room", lambda nbytes, device: False)
    monkeypatch.setattr(torch, "empty", lambda n, device: SimpleNamespace(device=torch.device(device)))
    with pytest.warns(UserWarning, match="1,000 images of 0.0 GB stay in the machine's memory: half of what cuda:1 has left is less"):
        assert placed(images, "cuda:1") is images


# Seconds of two devices

NINE = Spec("digits", "class", "nine", "small_cnn", "random_label", "digits", recipe="smoke")


@pytest.fixture
def session(tmp_path):
    return Session(Store(tmp_path), "cpu")


def test_seconds_of_two_devices_are_not_compared(session, monkeypatch):
    "A store that comes from a GPU: the retrain has no seconds here, and no run a ratio to them. A file that names no device is taken for one of this."
    monkeypatch.setattr(runs, "METRICS", {"time_ratio": METRICS["time_ratio"]})
    gold, ours = replace(NINE, method="retrain"), replace(NINE, measures="all", references=(0,))
    with monkeypatch.context() as there:
        there.setattr(sessions, "device_name", lambda device: "A GPU")
        trained(session, retrain_of(gold))
    assert header_of(session, retrain_of(gold))["device"] == "A GPU"
    row, other = run(gold, session), run(ours, session)
    assert math.isnan(row.seconds["unlearning"]) and row.metrics["cost"] == 1
    assert math.isnan(other.metrics["time_ratio"]) and other.seconds["unlearning"] > 0
    for missing in (row.missing["seconds"], other.missing["time_ratio"]):
        assert "was trained on another device (A GPU) than the row is made on (CPU, " in missing
    assert set(other.missing) == {"time_ratio"} and set(row.missing) == {"seconds"}
    line = line_of(Cell("small_cnn", "class", "nine", "retrain", gold), [row], paper_numbers(None))
    assert math.isnan(line["seconds"]) and line["note"].startswith("seconds: small_cnn on digits without nine")
    monkeypatch.setattr(sessions, "header_of", lambda *given: {k: v for k, v in header_of(*given).items() if k != "device"})
    session.release()
    row, other = run(gold, session), run(ours, session)
    assert row.seconds["unlearning"] > 0 and other.metrics["time_ratio"] > 0 and not row.missing and not other.missing


def test_a_picture_of_times_leaves_out_unknown_ones():
    lines = [("retrain", math.nan), ("maga", 2.0), ("ssd", 3.0)]
    rows = [[Row(m, NINE, seconds={"unlearning": s, "evaluation": 1.0, "loading": 1.0})] for m, s in lines]
    rows[2].append(Row("x", NINE, seconds={"unlearning": math.nan, "evaluation": 1.0, "loading": 1.0}))
    table = pd.DataFrame(lines, columns=["method", "seconds"]).assign(seeds=[1, 1, 2], seconds_ci95=math.nan)
    figure = show_times(SimpleNamespace(table=table, rows=rows, good=[r for some in rows for r in some]))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["maga", "ssd", "basics"]


# Memory that runs out, a device that breaks

FULL, WRONG = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), torch.AcceleratorError("CUDA error: an illegal memory access")


class Batch:
    "Three runs on a GPU that fails where `fails` says so, with tensors that an error holds."

    def __init__(self, session, monkeypatch):
        self.session, self.begun, self.held, self.freed, self.broken = session, [], [], [], False
        session.images("digits")
        session.device = torch.device("cuda:0")
        for name in ("synchronize", "empty_cache", "get_device_name"):
            monkeypatch.setattr(torch.cuda, name, lambda device=None, name=name: self.asked(name))
        monkeypatch.setattr(runs, "row_of", self.row_of)

    def asked(self, name):
        if self.broken:
            raise WRONG
        if name == "empty_cache":
            self.freed.append(all(tensor() is None for tensor in self.held))
        return "A GPU"

    def row_of(self, session, resolved):
        self.begun.append(resolved.spec.method)
        tensor = torch.zeros(3)
        self.held.append(weakref.ref(tensor))
        self.fails(resolved.spec.method, self.begun.count(resolved.spec.method))
        return Row(resolved.key, resolved.spec, {"A_r": 1.0})

    def run(self, fails):
        self.fails = fails
        return run_batch([replace(NINE, method=m) for m in ("random_label", "original", "retrain")], self.session)


@pytest.fixture
def batch(session, monkeypatch):
    return Batch(session, monkeypatch)


def failing(error, tries, name="random_label"):
    def fails(method, nth):
        if method == name and nth <= tries:
            raise type(error)(str(error))

    return fails


def test_a_run_that_memory_is_missing_for_is_tried_again_at_the_end(batch):
    "What the error held is gone before memory is given back."
    rows = batch.run(failing(FULL, 1))
    assert batch.begun == ["random_label", "original", "retrain", "random_label"] and not any(r.failed for r in rows)
    assert batch.freed == [True]


def test_it_fails_where_memory_is_missing_again(batch):
    rows = batch.run(failing(FULL, 9))
    assert batch.begun.count("random_label") == 2 and batch.freed == [True, True]
    assert [r.error for r in rows] == ["OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", None, None]


def test_a_second_try_is_alone_on_the_store(batch, monkeypatch):
    "It waits for a run of its batch that another process is at, and for a second try of any."
    locks, waits = batch.session.store.locks, []
    original = resolve(batch.session, replace(NINE, method="original")).key
    others = [(runs.SECOND_TRY, locks.take(runs.SECOND_TRY))]

    def fails(method, nth):
        if method == "retrain":  # meanwhile another process begins with a run that was put off
            others.append((original, locks.take(original)))
        else:
            failing(FULL, 1, method)(method, nth)

    def sleep(seconds):
        waits.append((len(batch.begun), others[-1][0]))
        locks.release(*others.pop())

    monkeypatch.setattr(runs.time, "sleep", sleep)
    assert not any(r.failed for r in batch.run(fails))
    assert batch.begun == ["random_label", "original", "retrain", "random_label", "original"] and waits == [(3, original), (3, runs.SECOND_TRY)]


def test_an_error_that_leaves_the_gpu_whole_is_a_row(batch):
    rows = batch.run(failing(WRONG, 9))
    assert batch.begun == ["random_label", "original", "retrain"] and [r.failed for r in rows] == [True, False, False]


def test_a_broken_gpu_ends_the_process_with_one_row(batch, tmp_path):
    "Nothing more is asked of the device; another process does the other runs."

    def breaks(method, nth):
        batch.broken = True
        raise WRONG

    with pytest.raises(SystemExit, match=r"A GPU does not work any more in this process .*illegal memory access.*; the same command goes on"):
        batch.run(breaks)
    (row,) = Store(tmp_path).rows()
    assert row.failed and row.provenance["device"] == "A GPU" and not list((tmp_path / "locks").iterdir())
    batch.broken = False
    assert [r.failed for r in batch.run(lambda *given: None)] == [True, False, False]


def test_a_shared_model_that_memory_is_missing_for_is_trained_later(session, monkeypatch):
    "It fails none of the runs that need it; any other failure is not repeated."
    tries, plain = [], sessions._train

    def train(at, training):
        tries.append(str(training))
        if len(tries) == 1:
            raise FULL
        plain(at, training)

    monkeypatch.setattr(sessions, "_train", train)
    monkeypatch.setattr(runs, "row_of", lambda at, r: (trained(at, original_of(r.spec)), Row(r.key, r.spec, {"A_r": 1.0}))[1])
    rows = run_batch([replace(NINE, method=m) for m in ("original", "random_label")], session)
    assert not any(r.failed for r in rows) and len(tries) == 2 and not session.failures
    monkeypatch.setattr(sessions, "_train", raising(ValueError("no")))
    seeds = [replace(NINE, training_seed=1, unlearning_seed=s) for s in (0, 1)]
    assert all("could not be trained: ValueError: no" in r.error for r in run_batch(seeds, session)) and len(session.failures) == 1


class Full(torch.nn.Module):
    "The device's memory is used up."

    def forward(self, x):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_full_memory_is_no_property_of_a_network(split):
    "Neither an error of its kind nor a metric that is missing: whoever runs it may try again."
    with pytest.raises(torch.OutOfMemoryError):
        prepared(Full(), split.train)

    def run(evidence, subject):
        try:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        except torch.OutOfMemoryError as e:
            raise MagaError("The probe could not be trained.") from e

    metric = replace(get_metric("A_f"), run=run)
    with pytest.raises(MagaError, match="The probe"):
        metric(Evidence((Subject(split, Full()),)))


def test_legacy_noise_is_made_in_the_precision_that_is_asked_for(split, original):
    "As other noise is."
    made = []
    for amp in (False, True):
        config = NoiseConfig(size=2, steps=2, lr=0.1, stop=None, amp=amp)
        made.append(legacy_noise(original, split, [split.forgotten[0]], config, torch.Generator().manual_seed(0))[1].images)
    assert not torch.equal(*made) and torch.allclose(*made, atol=0.5)
