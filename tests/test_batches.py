"What a batch of runs may rely on: its own code, the names that it was given, seconds that can be compared, the logits that are there."

import itertools
import json
import math
import shlex
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from maga.data import MagaError
from maga.experiments import __main__ as command
from maga.experiments import locks, runs, scores, session
from maga.experiments.claims import _on_one_machine
from maga.experiments.report import NOT_RUN, experiment, pending, shared_trainings, together
from maga.experiments.runs import by_other_code, run_batch
from maga.experiments.session import Session
from maga.experiments.settings import Settings, checked_selection, fitting, has_selected, selected
from maga.experiments.store import RETRAIN, Row, Spec, Store
from maga.measures.metrics import Outputs

NINE = Spec("digits", "class", "nine", "small_cnn", "maga", "digits", recipe="smoke")


def test_code_that_is_edited_meanwhile_is_not_the_batchs(tmp_path, monkeypatch):
    "A failed run stays failed in its process, and its row names the code that ran."
    edits = itertools.count()
    monkeypatch.setattr(session, "code_digest", lambda: f"edited {next(edits)} times")
    begun, attempt = [], runs.attempt

    def counting(*given):
        begun.append(given)
        assert len(begun) < 5
        return attempt(*given)

    monkeypatch.setattr(runs, "attempt", counting)
    rows = run_batch([replace(NINE, preset="nope"), replace(NINE, preset="nope2")], Session(Store(tmp_path), "cpu"))
    assert len(begun) == 2 and all(r.failed and r.provenance["code"] == "edited 0 times" for r in rows)
    later = Session(Store(tmp_path), "cpu")
    assert all(by_other_code(later, r) for r in rows)  # the next process tries them again


def test_machines_of_one_name_keep_each_others_locks(tmp_path, monkeypatch):
    "The number of a process says something only where it is counted: on the machine, since its start."
    monkeypatch.setattr(locks, "BOOT", boot := tmp_path / "boot_id")
    boot.write_text("first\n")
    there = locks.Locks(tmp_path / "locks")
    lock = tmp_path / "locks" / f"run.{there.take('run')}"
    lock.write_text(json.dumps(json.loads(lock.read_text()) | {"started": "0"}))  # no process here
    boot.write_text("second\n")
    assert there.take("run") is None
    boot.write_text("first\n")
    assert there.take("run") == 2


@pytest.mark.parametrize(
    "wanted",
    [
        {"target": ("rocket", "mushroom")},
        {"methods": ("retrain", "maga")},
        {"changes": (("ssd", "alpha", 5.0),)},
        {"backbone": ("vit_tiny",), "changes": (("maga", "tau", 0.2),)},
        {"target": ("sea",), "methods": ("maga", "ssd"), "changes": (("maga", "tau", 0.2), ("eu_k", "k", 3))},
    ],
)
def test_one_selection_serves_all_experiments(wanted):
    "Each gets the names that it has, and selects what it selects among all."
    settings = Settings("smoke", **wanted)
    for name in together():
        cells, read = experiment(name).cells(settings), experiment(name).reads(settings)
        if has_selected(cells, settings):
            own = fitting(settings, cells, read)
            checked_selection(own, cells, read)
            assert [selected(c, own) for c in cells] == [selected(c, settings) for c in cells]
            assert all(getattr(own, part) for part in ("target", "methods") if cells and getattr(settings, part))  # none would be all


def test_the_command_that_fills_a_line_is_taken():
    "A change of a method that only another experiment has is no part of it."
    settings = Settings("smoke", changes=(("eu_k", "k", 3), ("maga", "tau", 0.2)))
    found = SimpleNamespace(settings=settings, experiment=experiment("table1"))
    for cell in experiment("table1").cells(settings):
        words = shlex.split(pending(found, cell).removeprefix(NOT_RUN))[3:]
        given = command.given_settings(command.parser().parse_args(words))
        checked_selection(given, experiment("table1").cells(given))
        assert [c[0] for c in given.changes] == ["maga"] * (cell.method == "maga")


def test_a_model_is_found_among_experiments_that_the_preset_cannot_run(monkeypatch):
    settings, made = Settings("small", device="cpu"), []
    wanted = shared_trainings(["frontier"], settings)[0]
    monkeypatch.setattr(command, "open_session", lambda settings: None)
    monkeypatch.setattr(command, "missing_of", lambda specs, session: (1, 1))
    monkeypatch.setattr(command, "precision", lambda *given: nullcontext())
    monkeypatch.setattr(command, "model_key", lambda *given: "")
    monkeypatch.setattr(command, "trained", lambda session, training: made.append(training))
    command.train_one(wanted.key, ["table1", "frontier"], settings)
    assert made == [wanted]
    with pytest.raises(MagaError, match="has no cifar100"):
        command.train_one(wanted.key, ["table1"], settings)


def test_seconds_of_two_machines_are_not_compared():
    here = Row("a", NINE, provenance={"device": "CPU, 1 threads", "processor": "Xeon"})
    assert all(_on_one_machine(here, replace(here, provenance=p)) for p in (here.provenance, {"device": "CPU, 1 threads"}, {}))
    others = {"device": "NVIDIA H100"}, {"device": "CPU, 1 threads", "processor": "EPYC"}
    assert not any(_on_one_machine(here, replace(here, provenance=p)) for p in others)


def test_a_retrain_without_seconds_still_has_logits(monkeypatch):
    "An empty column is left out of a row that was restored."
    out = Outputs(torch.zeros(2, 3), torch.zeros(2, 3))
    monkeypatch.setattr(scores, "remembered_outputs", lambda *given: out)
    row = Row("a", replace(NINE, method=RETRAIN), seconds={"evaluation": 1.0})
    there = scores.kept_subject(SimpleNamespace(split=lambda spec: None), row)
    assert there is not None and there.outputs is out and math.isnan(there.seconds)
