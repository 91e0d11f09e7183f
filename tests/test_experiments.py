"The store with killed processes, the command, and the notebooks as papermill and snakemake run them."

import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import maga
from maga.benchmark import main as benchmark_main
from maga.checks import NotWritten
from maga.data import MagaError, write_whole
from maga.experiments import __main__ as command_module
from maga.experiments import runs as runs_module
from maga.experiments import session as session_module
from maga.experiments.__main__ import given_settings, main, parser, run_missing
from maga.experiments.catalogue import birds_transition
from maga.experiments.locks import Locks
from maga.experiments.outputs import kept_outputs
from maga.experiments.report import (
    EXPERIMENTS,
    asks_judge,
    compute,
    experiment,
    hardware,
    open_session,
    paper_folder,
    selected,
    shared_trainings,
    specs_of,
    together,
)
from maga.experiments.runs import BatchBar, forget_failures, run_batch
from maga.experiments.session import Session, Training, config_of, content_digest, model_key, resolve, retrain_of, trained
from maga.experiments.settings import Settings, parameter_cell, parameters_differ, settings_from
from maga.experiments.store import Row, Spec, Store, code_digest, key_of
from maga.experiments.studies import STUDIES, kept_about
from maga.judges.__main__ import main as judges_main
from maga.judges.answers import AnswerFile, Question
from maga.methods.contract import METHODS
from maga.progress import BatchReport

from .conftest import raising
from .forked import ENVIRONMENT, ROOT, Forked, executed

NOTEBOOKS = {p.stem: p for p in (ROOT / "nbs" / "experiments").rglob("*.ipynb")}
HERE = ("original", "retrain", "ssd", "random_label", "no_noise", "maga", "restart")  # of the methods
THERE = ("rocket", "dinosaur", "bird", "baby", "vehicles_2", "random", "whale")  # of the targets, some of every table: the digits nine, two, eight or nine, five
SMALL = (
    "table6",
    "--preset",
    "smoke",
    "--device",
    "cpu",
    "--backbone",
    "small_cnn",
    "--target",
    "rocket",
    "--methods",
    "original,retrain,random_label,no_noise,maga",
)


def started(results: Path, *arguments: str) -> Forked:
    "The command, at work."
    return Forked(main, [*arguments, "--results", str(results)])


def command(results: Path, *arguments: str) -> subprocess.CompletedProcess:
    "The command, when it has ended."
    return started(results, *arguments).ended()


def call(line: list[str], **more) -> subprocess.CompletedProcess:
    "A line as a shell runs it."
    return subprocess.run(line, capture_output=True, text=True, env=os.environ | ENVIRONMENT, cwd=ROOT, **more)


def metrics(results: Path) -> dict[str, dict[str, float]]:
    "Key -> metrics, as the files have them."
    return {p.stem: json.loads(p.read_text())["metrics"] for p in (results / "rows").glob("*.json")}


def kill_when(process: Forked, moment) -> None:
    "End a command with SIGKILL as soon as the moment has come."
    try:
        until = time.monotonic() + 120
        while not moment():
            assert process.alive(), "the command ended before the moment came"
            assert time.monotonic() < until, "the moment never came"
            time.sleep(0.002)
    finally:
        process.kill()


def test_three_kills_change_nothing(tmp_path):
    "Killed while the first model is trained, while the first rows are written, and with a helper beside: the rows are those of two processes left alone, each made once."
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert command(alone, *SMALL, "--processes", "2").returncode == 0
    assert len(metrics(alone)) == 5 and not list((alone / "locks").iterdir())
    rows, locks = killed / "rows", killed / "locks"

    def named() -> bool:  # every lock says whose it is; one that does not yet would be dead only after a minute
        try:
            return all(p.read_text() for p in locks.glob("*.*"))
        except FileNotFoundError:
            return False

    def first_training() -> bool:  # the run's lock and the model's: training has begun, nothing is finished
        return locks.is_dir() and len(list(locks.iterdir())) >= 2 and named()

    def finished(n: int):
        return lambda: rows.is_dir() and len(list(rows.glob("*.json"))) >= n and named()

    kill_when(started(killed, *SMALL, "--processes", "1"), first_training)
    assert not metrics(killed)
    kill_when(started(killed, *SMALL, "--processes", "1"), finished(1))
    assert 1 <= len(metrics(killed)) < 3
    working = Store(killed).locks.taken

    kill_when(started(killed, *SMALL, "--processes", "2"), lambda: bool(working()) and finished(2)())
    until = time.monotonic() + 20
    while working():
        assert time.monotonic() < until, "a helper works on although its command was killed"
        time.sleep(0.05)
    assert command(killed, *SMALL).returncode == 0
    assert metrics(killed) == metrics(alone)
    assert not list(locks.iterdir())


def share(results: Path, n: int) -> None:
    "A process of two: computes what the other does not, and logs each training and each run."
    log = results / f"log{n}"
    log.touch()

    def noted(kind, plain, number):
        def call(*arguments):
            with log.open("a") as f:
                f.write(f"{kind} {arguments[number].key}\n")
            return plain(*arguments)

        return call

    session_module._train = noted("train", session_module._train, 1)
    runs_module.attempt = noted("run", runs_module.attempt, 1)
    settings = Settings(results=str(results), device="cpu", backbone=("small_cnn",), target=("rocket",))
    specs = [c.specs((0,))[0] for c in experiment("table6").cells(settings) if selected(c, settings)]
    rows = run_batch(specs, open_session(settings))
    print(len(rows), sum(r.failed for r in rows))


def test_two_processes_share_the_work(tmp_path):
    "No run and no training is done twice, and each process has all rows in the end."
    both = [Forked(share, tmp_path, n) for n in range(2)]
    printed = [p.ended().stdout.split() for p in both]
    assert printed == [["6", "0"], ["6", "0"]]
    work = [line for n in range(2) for line in Path(tmp_path, f"log{n}").read_text().splitlines()]
    assert len(work) == len(set(work)), f"done twice: {sorted(w for w in set(work) if work.count(w) > 1)}"
    assert sum(w.startswith("run") for w in work) == 6 == len(metrics(tmp_path))
    assert sum(w.startswith("train") for w in work) == 2


def test_helpers_try_failed_runs_again(tmp_path, monkeypatch):
    "With --retry a helper that begins first computes them all."
    begun = []

    @contextmanager
    def helpers(arguments, n, settings):
        run_missing(cells, settings, session, parser().parse_args([*arguments, "--beside", "0.5"]), arguments)
        begun.append("helped")
        yield

    def row_of(session, resolved):
        begun.append(resolved.spec.method)
        return Row(resolved.key, resolved.spec, {"A_r": 1.0})

    settings = Settings(results=str(tmp_path), device="cpu", backbone=("small_cnn",), target=("rocket",), methods=("ssd", "random_label"))
    session, cells = open_session(settings), experiment("table6").cells(settings)
    monkeypatch.setattr(runs_module, "row_of", raising(ValueError("no luck")))
    assert all(row.failed for row in run_batch(specs_of(cells, settings, session), session))
    monkeypatch.setattr(runs_module, "row_of", row_of)
    monkeypatch.setattr(command_module, "helpers", helpers)
    for retry, done in ((["--retry", "--processes", "2"], ["random_label", "ssd", "helped"]), ([], ["random_label", "ssd", "helped", "helped"])):
        run_missing(cells, settings, session, parser().parse_args(["table6", *retry]), ["table6", *retry])
        assert begun == done


def test_only_the_retrains_that_are_asked_for_are_shared_with_a_given_original():
    "No original is trained for the runs, and a retrain only where it is run or every metric needs it; Figure 3 has a matrix of its own."
    settings = Settings(backbone=("small_cnn",), target=("rocket",))
    given = replace(settings, original="mine.safetensors")
    assert [bool(t.task) for t in shared_trainings(["table1"], settings)] == [False, True]
    assert [bool(t.task) for t in shared_trainings(["table1"], given)] == [True]
    assert shared_trainings(["table1"], replace(given, methods=("maga", "original"))) == []
    assert {t.seed for t in shared_trainings(["beyond"], replace(given, methods=("maga",)))} == {0, 1, 2}
    assert shared_trainings(["figure3"], given) == shared_trainings(["figure3"], settings)


def test_a_figure_varies_its_field_whatever_the_user_changes():
    "The points of a sweep are different runs; another change applies to all of them."
    settings = Settings(changes=(("maga", "tau", 0.3), ("maga", "noise.size", 4)))
    cells = experiment("figure7").cells(settings)
    assert len({key_of(c.spec) for c in cells}) == len(cells) and all(("noise.size", 4) in c.spec.changes for c in cells)
    assert [config_of(c.spec).tau for c in cells] == [dict(c.changes)["tau"] for c in cells] and len({config_of(c.spec).tau for c in cells}) == 2
    assert ("tau", 0.3) in next(c for c in experiment("table6").cells(settings) if c.method == "maga").spec.changes


@pytest.mark.parametrize("data", ["cifar10", "cifar10_small", "cifar10_tuning", "cifar10_small_tuning"])
def test_published_settings_of_a_data_set_hold_for_its_parts(data):
    "SalUn's authors have another order of the batches for CIFAR-10 than for CIFAR-100."
    spec = Spec(data, "class", "bird", "resnet10", "salun", "paper_resnet18")
    assert config_of(spec) == METHODS["salun"].presets["paper_resnet18_cifar10"] != config_of(replace(spec, data="cifar100"))
    coarse = replace(spec, data=data.replace("cifar10", "cifar20").replace("_small", ""), method="retrain_head")
    assert config_of(coarse) == METHODS["retrain_head"].presets["paper_resnet18_cifar20"]


def test_seconds_of_another_processor_are_another_devices(tmp_path, monkeypatch):
    "Rows and models name the processor; one that names none, as those from before, counts as this one."
    session, said = Session(Store(tmp_path), "cpu"), []
    spec = Spec("digits", "class", "nine", "small_cnn", "retrain", "digits", recipe="smoke")

    def by(name: str) -> tuple[str, str, bool]:
        for module in (runs_module, session_module):
            monkeypatch.setattr(module, "processor_name", lambda device: name)
        (row,) = run_batch([spec], session)
        session.store.row_path(row.key).unlink()
        said.append(row.missing.get("seconds", ""))
        return hardware([row]), row.provenance["processor"], np.isnan(row.seconds["unlearning"])

    assert by("Xeon") == ("CPU, 1 threads (Xeon)", "Xeon", False) and by("") == ("CPU, 1 threads", "", False)
    assert by("EPYC")[2] and said == ["", "", "small_cnn on digits without nine (class), seed 0 was trained on another processor (Xeon) than the row is made on (EPYC)"]
    old = {k: v for k, v in session_module.header_of(session, retrain_of(spec)).items() if k != "processor"}
    monkeypatch.setattr(session_module, "header_of", lambda *_: old)
    assert not by("EPYC")[2]


NO_ROOM = OSError(28, "No space left on device")


def test_a_full_disk_ends_a_batch_without_a_row(tmp_path, monkeypatch):
    "With a sentence; what was finished stays, and the same batch goes on."
    begun, session = [], Session(Store(tmp_path), "cpu")

    def row_of(session, resolved):
        begun.append(resolved.spec.method)
        if begun == ["ssd", "original"]:
            write_whole(tmp_path / "outputs" / "a.safetensors", raising(NO_ROOM))
        return Row(resolved.key, resolved.spec, {"A_r": 1.0})

    monkeypatch.setattr(runs_module, "row_of", row_of)
    batch = [Spec("digits", "class", "nine", "small_cnn", m, "digits", recipe="smoke") for m in ("ssd", "original", "retrain")]
    with pytest.raises(MagaError, match=r"could not be written \(\[Errno 28\] No space left on device\)"):
        run_batch(batch, session)
    assert [r.spec.method for r in Store(tmp_path).rows()] == ["ssd"] and not list((tmp_path / "locks").iterdir())
    assert not any(r.failed for r in run_batch(batch, session)) and begun == ["ssd", "original", "original", "retrain"]


def test_answers_that_the_disk_does_not_take_end_a_batch_without_a_row(tmp_path, monkeypatch):
    "Whatever the sentence says: the kind of error is asked, also behind others."
    (tmp_path / "file").touch()
    answers, session = AnswerFile(tmp_path / "file" / "answers", Question("toy", "", "", "", ("one", "two"))), Session(Store(tmp_path), "cpu")

    def row_of(session, resolved):
        try:
            with answers.writing():
                pass
        except MagaError as e:
            raise MagaError("T could not be made") from e

    monkeypatch.setattr(runs_module, "row_of", row_of)
    with pytest.raises(NotWritten, match="T could not be made"):
        run_batch([Spec("digits", "class", "nine", "small_cnn", "maga", "digits", recipe="smoke")], session)
    assert not session.store.rows()


def test_a_failed_row_says_what_was_known_before_its_run(tmp_path, monkeypatch):
    "As other rows do: the commit that the process began with, although it is another one meanwhile."
    session, spec = Session(Store(tmp_path), "cpu"), Spec("digits", "class", "nine", "small_cnn", "ssd", "digits", recipe="smoke")
    good = runs_module.provenance_of(session, session.split(spec))

    def row_of(session, resolved):
        monkeypatch.setattr(subprocess, "run", lambda *given, **named: SimpleNamespace(returncode=0, stdout="another"))
        raise MagaError("No.")

    monkeypatch.setattr(runs_module, "row_of", row_of)
    (row,) = run_batch([spec], session)
    assert row.failed and row.provenance == {k: v for k, v in good.items() if k not in ("data_hash", "split_digest")}
    assert {"commit", "code", "device", "processor", "date", "torch"} <= row.provenance.keys()


def test_half_written_files_are_swept_from_the_whole_store(tmp_path):
    "Its own folder and every part of it, a table's too; locks, hidden folders, the user's own files and unfinished folders of results apart."
    store, names = Store(tmp_path), [f"{part}.a.json.0123abcd.half" for part in ("", "rows/", "scores/", "table6/", "locks/", ".kept/")]
    names += [".env.20240131", "rows/.notes.20240131", ".out.4711.0123abcd.part"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    store.sweep()
    assert [name for name in names if (tmp_path / name).exists()] == names[-5:]


def test_what_a_killed_process_leaves_is_swept(tmp_path):
    def killed(path):
        shutil.copy(path, left := tmp_path / path.name.replace(".a.", ".killed."))
        os.utime(left, (0, 0))

    write_whole(tmp_path / "a.json", killed)
    Store(tmp_path).sweep()
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_row_of_another_key_is_no_row(tmp_path):
    "As a file that was copied under another name."
    store, spec = Store(tmp_path), Spec("digits", "class", "nine", "small_cnn", "ssd", "digits")
    row = store.put(Row("a" * 16, spec))
    shutil.copy(store.row_path(row.key), store.row_path("b" * 16))
    assert store.get("b" * 16) is None and store.rows() == [row]


def test_damaged_kept_logits_are_named(tmp_path):
    session = Session(Store(tmp_path), "cpu")
    (file := session.store.outputs("a")).parent.mkdir()
    file.write_bytes(b"cut off")
    with pytest.raises(MagaError, match=r"outputs/a\.safetensors cannot be read .*delete it and its row, .*rows/a\.json"):
        kept_outputs(session, "a")


def test_a_lock_with_undecodable_bytes_has_no_owner(tmp_path):
    locks = Locks(tmp_path, patience=0.0)
    (tmp_path / "run.1").write_bytes(b'{"host": "\xff')
    locks.dead("run", 1)  # from here on its silence counts
    assert locks.taken() == set() and locks.take("run") == 2


def test_the_code_of_a_row_is_that_of_the_whole_package(tmp_path, monkeypatch):
    "A method that is edited is other code, so that its failed runs are tried again."
    monkeypatch.setattr(maga, "__path__", [str(tmp_path)])
    (tmp_path / "methods").mkdir()
    codes = {(tmp_path / "methods" / "own.py").write_text(text) and code_digest() for text in ("a = 1", "a = 2")}
    assert len(codes) == 2


def test_a_bar_begins_anew_where_less_is_done_than_before():
    "As with a batch that ended early; and where the whole grows, the bar knows it."
    show = BatchBar("table6")
    for report in (BatchReport(2, 0, 1, 2, 2, 1.0), BatchReport(3, 0, 1, 6, 3, 1.0)):
        show(report)
    first = show.bar
    assert (first.n, first.total) == (3, 10)
    show(BatchReport(0, 0, 1, 3, 0, 1.0))
    assert first.disable and show.bar is not first and (show.bar.n, show.bar.total) == (0, 4)
    show.bar.close()


@pytest.mark.parametrize("run", (main, judges_main, benchmark_main))
def test_a_wrong_option_is_one_sentence(run, capsys):
    assert run([*(("--data", "digits", "--judge", "features") if run is judges_main else ()), "--nonsense"]) == 1
    out, err = capsys.readouterr()
    assert not out and re.fullmatch(r"(maga\.judges: )?Unrecognized arguments: --nonsense; `python -m maga\.\w+ --help` lists the options\.\n", err)


def test_a_shared_model_without_room_is_trained_later(tmp_path, monkeypatch):
    session = Session(Store(tmp_path), "cpu")
    monkeypatch.setattr(session_module, "_train", lambda *_: write_whole(tmp_path / "model", raising(NO_ROOM)))
    with pytest.raises(MagaError, match=r"small_cnn on digits, seed 0 could not be trained: .*No space left"):
        run_batch([Spec("digits", "class", "nine", "small_cnn", "original", "digits", recipe="smoke")], session)
    assert not session.store.rows() and not session.failures


def test_a_lock_without_room_leaves_nothing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(MagaError, match=r"run\.1 could not be written \(\[Errno 27\]"):
            Locks(tmp_path).take("run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir()) and Locks(tmp_path).take("run") == 1


def test_a_judge_that_does_not_exist_is_named_before_any_run(tmp_path, capsys):
    assert main(["table6", "--device", "cpu", "--results", str(tmp_path), "--judge", "featurs"]) == 1
    assert "There is no judge 'featurs' (did you mean features?)" in capsys.readouterr().err and not Store(tmp_path).rows()


def test_several_judges_are_compared_where_an_experiment_takes_several(tmp_path, capsys):
    "A wrong name among them is said before any run, and so are several where one makes T."
    asked = Settings(device="cpu", backbone=("small_cnn",), results=str(tmp_path), judge="features,superclasses")
    session = open_session(asked)
    judges = {s.judge for s in specs_of(experiment("judge_helps").cells(asked), asked, session) if asks_judge(s)}
    assert {"features", "superclasses"} <= judges and not any("," in name for name in judges)
    for name, judge, wrong in (("judge_helps", "features,superclases", "superclases"), ("table6", "features,superclasses", "features,superclasses")):
        assert main([name, "--device", "cpu", "--results", str(tmp_path), "--judge", judge]) == 1
        assert f"There is no judge '{wrong}'" in capsys.readouterr().err and not Store(tmp_path).rows()


def test_a_list_that_is_given_twice_has_all_values():
    "As one that is separated by commas; of another option the last value counts."
    twice = ["--set", "maga.tau=0.1", "--set", "maga.noise.size=4", "--target", "rocket", "--target", "mushroom", "--seeds", "0", "--seeds", "1,2"]
    once = ["--set", "maga.tau=0.1,maga.noise.size=4", "--target", "rocket,mushroom", "--seeds", "0,1,2"]
    assert given_settings(parser().parse_args(["table6", *twice])) == given_settings(parser().parse_args(["table6", *once]))
    assert given_settings(parser().parse_args(["table6", "--preset", "paper", "--preset", "small"])).preset == "small"
    assert given_settings(parser().parse_args(["table6"])) == Settings()


def test_two_networks_of_one_column_are_refused():
    "A table has one line for both."
    with pytest.raises(MagaError, match="vit_base, vit_small fill the same lines"):
        Settings("paper", backbone=("resnet18", "vit_base", "vit_small"))
    assert Settings("paper", backbone=("resnet18", "vit_small")).network("vit").name == "vit_small"


def test_a_folder_of_the_home_is_one_folder(tmp_path, monkeypatch, capsys):
    "Rows are restored to where a batch looks for them."
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["table5", "--device", "cpu", "--results=~/x"]) == 0
    assert (tmp_path / "x" / "table5" / "table.csv").is_file() and Settings(results="~/x").results_folder == tmp_path / "x"
    assert Settings(data_root="~/x").data_folder == tmp_path / "x"


def test_figure_5_takes_the_settings_of_maga(smoke):
    "The rank of its labels is that of the changes."
    tables = {tau: compute("figure5", Settings(device="cpu", backbone=("small_cnn",), results=str(smoke), changes=(("maga", "tau", tau),))).table for tau in (0.1, 0.9)}
    assert not tables[0.1].equals(tables[0.9])


def test_figures_3_and_5_start_from_a_given_original(smoke):
    "Where it fits: T is that of the model in the file."
    own = Settings(device="cpu", backbone=("small_cnn",), results=str(smoke))
    session, of_seed = open_session(own), {}
    for seed in (0, 1):
        training = Training("digits", "small_cnn", "smoke", seed)
        trained(session, training)
        given = replace(own, original=str(session.store.checkpoint(model_key(session, training))))
        of_seed[seed] = birds_transition(given, open_session(given)).T
    T = birds_transition(own, session).T
    assert of_seed[0].equal(T) and not of_seed[1].equal(T)


def test_failed_runs_are_counted_among_those_that_are_asked_for(tmp_path, capsys, monkeypatch):
    def row_of(session, resolved):
        if resolved.spec.method == "ssd":
            raise ValueError("no luck")
        return Row(resolved.key, resolved.spec, {"A_r": 1.0})

    monkeypatch.setattr(runs_module, "row_of", row_of)
    line = ["table6", "--device", "cpu", "--results", str(tmp_path), "--backbone", "small_cnn", "--target", "rocket", "--methods"]
    for methods, code, said in (("ssd", 1, "1 of 1 runs failed"), ("random_label", 0, ""), ("ssd,random_label", 0, "1 of 2 runs failed")):
        assert main([*line, methods]) == code
        err = capsys.readouterr().err
        assert ("runs failed" in err) == bool(said) and said in err
    asked = Settings(device="cpu", results=str(tmp_path), backbone=("small_cnn",), target=("rocket",), methods=("ssd",))
    with pytest.raises(MagaError, match=r"All 1 runs of table6 failed, such as: .*no luck.*table6 .*--methods ssd --retry"):
        compute("table6", asked)  # a notebook ends with it, and its job with an error
    assert (tmp_path / "table6" / "table.csv").is_file() and len(compute("table6", replace(asked, methods=("ssd", "random_label"))).good) == 1


def test_a_shared_model_is_trained_for_runs_that_are_missing(tmp_path, monkeypatch, capsys):
    "Rows that were restored come without models, and need none."
    settings, made = Settings(device="cpu", results=str(tmp_path), backbone=("small_cnn",), target=("rocket",), methods=("ssd",)), []
    monkeypatch.setattr(runs_module, "row_of", lambda session, resolved: Row(resolved.key, resolved.spec, {"A_r": 1.0}))
    monkeypatch.setattr(command_module, "trained", lambda session, training: made.append(training))
    first, second = shared_trainings(["table6"], settings)
    command_module.train_one(first.key, ["table6"], settings)
    compute("table6", settings)
    command_module.train_one(second.key, ["table6", "figure5"], settings)
    assert made == [first] and "every run that needs it is finished" in capsys.readouterr().out
    of_figure = shared_trainings(["figure5"], settings)[0]
    command_module.train_one(of_figure.key, ["table6", "figure5"], replace(settings, target=(), methods=()))
    assert made[1:] == [of_figure]


def test_helpers_take_the_cards_in_turn(monkeypatch):
    "Each sees its own alone, as its first, whatever cards the command sees; the first process keeps the first."
    started = []

    def start(words, env, **given):
        started.append((words[-1], env.get("CUDA_VISIBLE_DEVICES")))
        return SimpleNamespace(kill=lambda: None, wait=lambda: None)

    monkeypatch.setattr(command_module.subprocess, "Popen", start)

    def places(n, cards, visible=None, **asked):
        started.clear()
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
        with command_module.helpers(["table6"], n, Settings(**asked)):
            return started.copy()

    assert places(3, 3) == [("cuda", "1"), ("cuda", "2"), ("cuda", "0")]
    assert places(2, 2, "5, GPU-8a", device="cuda") == [("cuda", "GPU-8a"), ("cuda", "5")]
    assert [places(1, 3, device=name) for name in ("cpu", "cuda:0")] == [[("cpu", None)], [("cuda:0", None)]]
    assert places(1, 1, "3", device="cuda") == [("cuda", "3")]


def test_a_process_trains_the_retrain_that_no_other_does(tmp_path, monkeypatch):
    "A run is compared with three retrains. While another process trains that of its own seed, this one begins with the next."
    session, order = Session(Store(tmp_path), "cpu"), []
    spec = Spec("digits", "class", "nine", "small_cnn", "ssd", "digits", recipe="smoke", measures="all", references=(0, 1, 2))

    def trained(_, training):
        order.append(str(training))
        if len(order) == 2:
            raise RuntimeError("seen")

    monkeypatch.setattr(runs_module, "trained", trained)
    resolved = resolve(session, spec)
    with Locks(session.store.locks.folder).held(resolved.dependencies.retrain) as mine:
        assert mine
        (row,) = run_batch([spec], session)
    assert "seen" in row.error and order == ["small_cnn on digits, seed 0", "small_cnn on digits without nine (class), seed 1"]
    alone = resolve(session, replace(spec, training_seed=3))
    assert alone.dependencies.retrain in runs_module.models_of(alone), "a retrain that is no reference is waited for"


def test_a_process_asks_before_each_training_who_is_at_the_others(tmp_path, monkeypatch):
    "Another process begins with the second retrain while this one trains the first: the third comes next, and nobody waits."
    session, order = Session(Store(tmp_path), "cpu"), []
    spec = Spec("digits", "class", "nine", "small_cnn", "ssd", "digits", recipe="smoke", measures="all", references=(0, 1, 2))
    locks, keys = session.store.locks, [model_key(session, retrain_of(spec, seed)) for seed in spec.references]

    def trained(_, training):
        order.append(training.seed)
        if training.seed == 0:
            assert locks.take(keys[1]) is not None

    monkeypatch.setattr(runs_module, "trained", trained)
    runs_module.train_references(session, spec)
    assert order == [0, 2, 1]


@pytest.mark.parametrize(("asked", "there"), [
    ("table7 --backbone vit_tiny", "a run with backbone vit_tiny; there are small_cnn."),
    ("table1 --preset laptop --backbone efficientnet_lite0", "a run with backbone efficientnet_lite0; there are resnet6_haar."),
    ("figure5 --methods maga", "No selected experiment has the method 'maga'; it has no runs of its own."),
    *((f"{name} --backbone vit_tiny", "a run with backbone vit_tiny; there are small_cnn.") for name in ("figure3", "figure5", "judging")),
    ("table5 --preset laptop --backbone efficientnet_lite0", "a run with backbone efficientnet_lite0; there are resnet6_haar."),
    ("figure7 --set maga.fit.lr=0.1,maga.tau=0.2", "No selected experiment takes maga.fit.lr=0.1,maga.tau=0.2: it varies or fixes that setting"),
    *((f"{name} --set maga.alpha=0.2", "No selected experiment takes maga.alpha=0.2") for name in ("figure3", "figure5", "table5", "judging")),
    ("figure5 --set ssd.alpha=5", "No selected experiment has the method (of a change) 'ssd'; there are maga."),
    ("table1 --set maga.transition=null", "maga's transition is no setting"),
    ("restore --preset paper", "No row of the preset paper is published; restore copies all rows, which are of laptop, small."),
    ("restore --preset laptop --target rocket --seeds 0", "restore takes all rows, not some: leave --seeds 0 --target rocket out."),
    ("all --target bird --methods bad_teacher", "target bird, methods bad_teacher; there are random bad_teacher, bird original, bird retrain, bird finetune, bird unsir"),
])  # fmt: skip
def test_a_selection_of_nothing_is_said(tmp_path, capsys, asked, there):
    assert main([*asked.split(), "--device", "cpu", "--results", str(tmp_path)]) == 1
    assert there in capsys.readouterr().err


def test_errors_are_one_sentence(tmp_path):
    for wrong, word in (("table9", "table8"), ("table1 --device tpu9", "device"), ("table1 --judge nowhere.safetensors", "nowhere"), ("table1 --preset laptop --data-root nowhere", "cifar100 was not found"), ("table6 --processes -1", "--processes is -1")):
        ended = command(tmp_path, *wrong.split())
        assert (ended.returncode, ended.stderr.strip().count("\n")) == (1, 0) and word in ended.stderr, ended.stderr


ALL = ("all", "--device", "cpu", "--backbone", "small_cnn", "--methods", ",".join(HERE), "--target", ",".join(THERE))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Path:
    "All tables and figures by the command, with one network, some methods and a target of each. Test processes that want it at once share the work, as any two processes would."
    base = tmp_path_factory.getbasetemp()
    results = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "smoke"
    ended = call([sys.executable, "-m", "maga.experiments", *ALL, "--results", str(results)], timeout=900)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return results


def test_all_is_filled(smoke):
    "Every experiment has its table, every line that was selected has its numbers, the others say how to run them, and no run failed."
    for name in together():
        table = pd.read_csv(smoke / name / "table.csv")
        assert len(table) > 0
        if "A_r" in table:
            here = table.method.isin(HERE) & (table.get("backbone", "small_cnn") == "small_cnn")  # nothing of figure 4, which has a ViT alone
            here &= table.target.isin(THERE)
            assert (table.A_r.notna() == here).all() and table[~here].note.astype(str).str.startswith("not run").all(), name
            table = table[here]
            filled = table.seed.notna() if name == "frontier" else table.seeds == 1
            assert (len(table) or name == "figure4") and filled.all(), (name, table.note.dropna().tolist())
            numbers = table[table.method != "original"][["A_r", "A_f", "MIA", "TV", "seconds"]]
            assert numbers.notna().all().all(), name
    everything = pd.read_parquet(smoke / "all.parquet")
    assert everything.error.isna().all() and everything.key.is_unique and len(everything) == len(pd.read_csv(smoke / "all.csv"))
    assert not list((smoke / "locks").iterdir())


def test_rows_say_where_they_come_from(smoke):
    for row in Store(smoke).rows():
        assert {"torch", "device", "code", "data_hash", "split_digest", "date"} <= row.provenance.keys()
        assert row.made_from_forgotten and row.dependencies["original"]
        guided = row.spec.method in ("maga", "no_noise")
        assert bool(row.dependencies["transition"]) == guided
        assert any("exemplars" in t for t in row.made_from_forgotten) == guided


def test_the_frontier_has_every_method(smoke):
    "A row a method on digits: with its cost in passes, and near to the retrains or not."
    table = pd.read_csv(smoke / "frontier" / "table.csv")
    promised = ["method", "budget", "cost", "seconds", "A_r", "A_f", "MIA", "neighbour_tv_ratio", "relearn_ratio", "probe_gap", "ulira_auc"]
    assert set(promised) <= set(table) and set(table.method) == set(METHODS) - {"retrain_head"} | {"original"}
    table = table[table.method.isin(HERE)]
    costs = table.set_index("method").cost
    assert costs["retrain"] == 1 and costs["original"] == 0 and (costs.drop("original") > 0).all()
    assert table.neighbour_tv_ratio.notna().all() and table.set_index("method").neighbour_tv_ratio["original"] > 1


def test_second_time_computes_nothing(smoke, tmp_path):
    "In a copy: tests of another process write into the shared folder meanwhile."
    results = shutil.copytree(smoke, tmp_path / "results")
    before = {p: p.stat().st_mtime_ns for part in ("rows", "checkpoints", "outputs") for p in (results / part).iterdir()}
    assert command(results, *ALL).returncode == 0
    assert {p: p.stat().st_mtime_ns for part in ("rows", "checkpoints", "outputs") for p in (results / part).iterdir()} == before


def execute(notebook: Path, output: Path, *parameters: str) -> subprocess.CompletedProcess:
    return Forked(executed, str(notebook), str(output), *parameters).ended(600)


@pytest.mark.parametrize(("name", "target"), [("figure6", "bird"), ("frontier", "rocket")])
def test_notebooks_run_and_draw(smoke, name, target):
    "papermill runs a figure and the frontier; the picture has something on it. Tables run as studies do."
    some = ("backbone=small_cnn", "methods=original,retrain,ssd,maga", f"target={target}")
    ended = execute(NOTEBOOKS[name], smoke / name / f"{name}.ipynb", "preset=smoke", "device=cpu", f"results={smoke}", *some)
    assert ended.returncode == 0, ended.stderr[-2000:]
    pixels = np.asarray(Image.open(smoke / name / f"{name}.png").convert("RGB"))
    dark = (pixels < 200).any(-1)
    assert dark.mean() > 0.01 and len(np.unique(pixels[dark], axis=0)) > 5


FEW = {"methods": ["methods=original,retrain,ssd,maga,delete"], "nearness": ["methods=original,retrain,restart"]}  # the others run whole


@pytest.mark.parametrize("name", [e.name for e in STUDIES])
def test_studies_run(smoke, tmp_path, name):
    "A study apart from `all` runs beside the rows that the tables left: every line that was selected has its numbers, and the kept run is shown."
    results = shutil.copytree(smoke, tmp_path / "results")
    ended = execute(NOTEBOOKS[name], tmp_path / f"{name}.ipynb", "preset=smoke", "device=cpu", f"results={results}", *FEW.get(name, []))
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert json.dumps(kept_about(name), ensure_ascii=False)[1:-1] in (tmp_path / f"{name}.ipynb").read_text()
    table = pd.read_csv(results / name / "table.csv")
    assert len(table) > 0 and not (smoke / name).exists()
    if "A_r" in table:
        notes = table.note.astype(object).fillna("")
        assert table.A_r.notna().any() and (table.A_r.notna() == (notes == "")).all() and notes.str.match("not run|$").all()


def test_the_study_of_fine_tuned_networks_runs(tmp_path):
    "Without CIFAR-100 it takes digits; what it trained is kept."
    some = ("data=none", f"results={tmp_path}", "epochs=8", "retrains=3")
    ended = execute(NOTEBOOKS["fine_tuned"], tmp_path / "fine_tuned.ipynb", *some)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "The plan's result: A_r" in (tmp_path / "fine_tuned.ipynb").read_text()
    assert len(list((tmp_path / "fine_tuned").glob("retrain_*"))) == 7


def test_the_record_of_the_search_is_shown(tmp_path):
    ended = execute(NOTEBOOKS["search"], tmp_path / "search.ipynb", "lines=0")
    assert ended.returncode == 0, ended.stderr[-2000:]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_parameters(name):
    "Every experiment's notebook takes every setting, in one tagged cell that papermill reads."
    papermill = pytest.importorskip("papermill")
    assert parameters_differ(NOTEBOOKS[name]) == ""
    found = papermill.inspect_notebook(str(NOTEBOOKS[name]))
    assert list(found) == list(Settings().texts())
    assert f'"{name}"' in NOTEBOOKS[name].read_text().replace('\\"', '"')


def test_unknown_parameters_and_lost_tags_fail(tmp_path):
    ended = execute(NOTEBOOKS["table5"], tmp_path / "out.ipynb", "presett=smoke")
    assert ended.returncode == 1 and "no parameter 'presett'" in ended.stderr and ended.stderr.strip().count("\n") == 0
    notebook = json.loads((NOTEBOOKS["table5"]).read_text())
    for cell in notebook["cells"]:
        cell["metadata"].pop("tags", None)
    (tmp_path / "lost.ipynb").write_text(json.dumps(notebook))
    ended = execute(tmp_path / "lost.ipynb", tmp_path / "out.ipynb", "preset=smoke")
    assert ended.returncode == 1 and "no cell tagged `parameters`" in ended.stderr
    assert not (tmp_path / "out.ipynb").exists()


def test_a_notebook_that_stops_fails(tmp_path):
    ended = execute(NOTEBOOKS["table5"], tmp_path / "out.ipynb", "preset=large", f"results={tmp_path}")
    assert ended.returncode == 1 and "There is no preset 'large'" in ended.stderr


def test_paper_tables():
    "Every cell of the paper's tables is there once."
    folder = paper_folder()
    assert folder is not None
    lines = {1: 84, 2: 84, 3: 84, 4: 42, 6: 72, 7: 105, 8: 105}
    for number, n in lines.items():
        table = pd.read_csv(folder / f"table{number}.csv")
        assert list(table) == ["table", "model", "task", "target", "metric", "method", "value"]
        assert len(table) == n and (table.table == number).all()
        assert not table.duplicated(["model", "task", "target", "metric", "method"]).any()
        assert table.value.between(0, 100).all() and set(table.metric) == {"A_r", "A_f", "MIA"}
    settings = pd.read_csv(folder / "table5.csv")
    assert list(settings) == ["parameter", "resnet18", "vit"] and len(settings) == 9


def jobs(text: str) -> list[tuple[str, str]]:
    "(rule, description) of every job that a dry run lists."
    parts = re.split(r"^(?:local)?rule (\w+):$", text, flags=re.M)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def plan(*options: str) -> subprocess.CompletedProcess:
    "A dry run with the Slurm profile; the options are the configuration, and what comes after it."
    return Forked(snakemake, "--dry-run", "--profile", "profiles/slurm", "--config", *options).ended()


def snakemake(*arguments: str) -> None:
    from snakemake.cli import main as snakemake_main

    snakemake_main(list(arguments))  # exits


def test_snakemake_plans_one_gpu_a_job(tmp_path):
    "With the Slurm profile: shared models first, then the notebooks that need them, one GPU each; none for a table that computes nothing."
    line = f"results={tmp_path}", "preset=paper"
    ended = plan(*line, "seeds=0", "backbone=resnet18", "target=rocket", "only=table1,table5,table6,figure5", "--printshellcmds")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    planned = jobs(ended.stdout + ended.stderr)
    work = [(rule, text) for rule, text in planned if rule in ("model", "notebook")]
    assert all(re.search(r"\bgpu=0\b" if "name=table5" in text else r"\bgpu=1\b", text) for _, text in work)
    assert all(re.search(r"device=auto" if "name=table5" in text else r"device[ =]cuda", text) for _, text in work)  # no CPU in silence
    models = {re.search(r"key=(\w+)", text).group(1) for rule, text in work if rule == "model"}
    needs = {
        re.search(r"name=(\w+)", text).group(1): set(re.findall(r"jobs/(\w{16})", text.split("output:")[0]))
        for rule, text in work
        if rule == "notebook"
    }
    assert set(needs) == {"table1", "table5", "table6", "figure5"} and not needs["table5"]
    assert len(models) == 3  # an original and a retrain on CIFAR-100, an original on CIFAR-10
    assert needs["table1"] == needs["table6"] and len(needs["table1"]) == 2 and len(needs["figure5"]) == 1
    assert needs["table1"] | needs["figure5"] == models  # every notebook waits for its models, every model is for a notebook
    drawn = plan(*line, "results=published", "only=table1,figure3", "preset=laptop", "--forceall")
    planned = [(rule, text) for rule, text in jobs(drawn.stdout + drawn.stderr) if rule in ("model", "notebook")]
    assert [rule for rule, _ in planned] == ["notebook"] * 2 and all(f"{ROOT}/results/published/laptop/" in text for _, text in planned)
    ended = plan(*line, "presett=paper")
    assert ended.returncode != 0 and "There is no option 'presett'; there are preset, data_root" in ended.stdout + ended.stderr


def test_jobs_that_are_cut_off_are_tried_again():
    "A training, which begins anew, with more time."
    rules = dict(re.findall(r"^rule (\w+):\n(.*?)(?=^rule |\Z)", (ROOT / "Snakefile").read_text(), flags=re.M | re.S))
    assert all(re.search(r"^    retries: 2$", rules[name], re.M) for name in ("model", "notebook"))
    assert re.search(r"^        runtime=lambda w, attempt: 120 \* attempt,", rules["model"], re.M)


def test_snakemake_asks_little_for_digits(tmp_path):
    "With the Slurm profile and the smoke preset: no GPU, memory that a laptop has, and the account and partition that Slurm takes by itself."
    line = f"results={tmp_path / 'my results'}", "only=table6,figure6"
    ended = plan(*line, "preset=smoke", "backbone=small_cnn", "target=rocket,bird", "original=", "--printshellcmds")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    asked = [text for rule, text in jobs(ended.stdout + ended.stderr) if rule in ("model", "notebook")]
    assert len(asked) == 5 and all(re.search(r"\bmem_mb=8000\b.*\bgpu=0\b", text) for text in asked)
    assert not any("slurm_" in text for text in asked)
    given = re.findall(r"tools/execute.py \S+/(\w+)\.ipynb '\S+/my results/\S+\.ipynb' .* target=(\S*) ", ended.stdout + ended.stderr)
    assert sorted(given) == [("figure6", "bird"), ("table6", "rocket")]  # each gets the targets that it has
    assert all("None" not in text for text in asked)  # an empty option is empty


def test_settings_reach_the_command():
    "Settings that are written as options, parameters or text are read as the same settings."
    from maga.experiments.__main__ import given_settings, parser

    changes = (("maga", "noise.size", 32), ("ssd", "order", "shuffled"))
    some = Settings("paper", "d e", "r", "cpu", (0, 1), "a.safetensors", ("vit_small",), ("sea",), ("maga",), "m.safetensors", True, changes)
    assert given_settings(parser().parse_args(["table1", *shlex.split(some.options())])) == some
    assert parser().parse_args(some.command("table1").split()[3:]).name == "table1"
    assert settings_from(**some.texts()) == some
    cell: dict = {}
    exec(parameter_cell(), cell)
    assert settings_from(**{k: v for k, v in cell.items() if k != "__builtins__"}) == Settings()


ROW_OF_2E2C016 = Path(__file__).with_name("row_of_2e2c016.json")  # as the code of that commit wrote it


def old_row(results: Path, **provenance: str) -> Row:
    "The row of 2e2c016 in a store, with another provenance."
    raw = json.loads(ROW_OF_2E2C016.read_text())
    raw["provenance"] |= provenance
    (results / "rows").mkdir(exist_ok=True)
    (results / "rows" / f"{raw['key']}.json").write_text(json.dumps(raw))
    return Row.from_json(json.dumps(raw))


def test_a_file_that_is_no_text_holds_no_row(tmp_path):
    "As one that was cut off: it is passed over, and its run is computed."
    store = Store(tmp_path)
    store.row_path("x").parent.mkdir()
    store.row_path("x").write_bytes(b'{"key": "\xff')
    row = Row("x", Spec("digits", "class", "nine", "small_cnn", "ssd", "digits", recipe="smoke"))
    assert store.get("x") is None and store.rows() == [] and not store.holds(row)
    assert store.get(store.put(row).key) == row


def test_a_row_from_before_the_move_is_served(tmp_path):
    "It lies under the key of what is asked for, its ratio has the present name, and a batch computes nothing."
    from maga.experiments.runs import kept, run_batch
    from maga.experiments.session import Session, resolve

    row, session = old_row(tmp_path), Session(Store(tmp_path), "cpu")
    asked = resolve(session, row.spec)
    assert asked.asked == row.key == "9ee575e08ece5d73" != asked.key
    served = kept(session, asked)
    assert served is not None and served.provenance["commit"] == "2e2c016225ce"
    assert {"neighbour_tv_ratio", "neighbour_tv_ratio_train"} <= served.metrics.keys() and "neighbour_tv" not in served.metrics
    assert served.metrics["neighbour_tv_ratio"] == 2.1358577328303503
    assert run_batch([row.spec], session)[0].to_json() == served.to_json()
    assert not (tmp_path / "checkpoints").exists() and len(list((tmp_path / "rows").iterdir())) == 1
    again = Row.from_json(served.to_json())
    assert again.metrics.keys() == served.metrics.keys() and again.spec == served.spec
    both = Row(key_of("both"), row.spec, {"neighbour_tv": 30.0, "neighbour_tv_ratio": 2.0})  # percent and ratio
    assert Row.from_json(both.to_json()).metrics == both.metrics


def test_an_old_row_must_agree(tmp_path):
    "Of other data, of another precision, or without a word on either: it answers no request that it does not fit."
    from maga.experiments.runs import kept
    from maga.experiments.session import Session, resolve

    session = Session(Store(tmp_path), "cpu")

    def served(**provenance: str) -> bool:
        return kept(session, resolve(session, old_row(tmp_path, **provenance).spec)) is not None

    assert served() and served(device="NVIDIA H100")
    assert not served(data_hash="0" * 16) and not served(device="CPU, 1 threads, bfloat16")
    with torch.autocast("cpu", torch.bfloat16):
        assert served(device="CPU, 1 threads, bfloat16") and not served()
    raw = json.loads(ROW_OF_2E2C016.read_text())
    for part in ("data_hash", "device"):
        without = raw | {"provenance": {k: v for k, v in raw["provenance"].items() if k != part}}
        (tmp_path / "rows" / f"{raw['key']}.json").write_text(json.dumps(without))
        assert kept(session, resolve(session, Row.from_json(json.dumps(without)).spec)) is None


def test_other_data_or_precision_is_another_run(tmp_path):
    "700 digits are not answered with the row of 1,437, nor float32 with bfloat16; each is there when it is asked for again."
    from maga.experiments.report import compute
    from maga.experiments.session import Session

    settings = Settings(results=str(tmp_path), device="cpu", backbone=("small_cnn",), target=("rocket",), methods=("original",))

    def line(session: Session, **more) -> tuple[float, int]:
        table = compute("table6", replace(settings, **more), session).table
        return table.A_r.dropna().item(), len(list((tmp_path / "rows").iterdir()))

    everything, some = (Session(Store(tmp_path), "cpu") for _ in range(2))
    train, test = some.images("digits")
    some.recent_images.kept["digits"] = (train.subset(torch.arange(700)), test)
    first, second, third = line(everything), line(some), line(everything, bfloat16=True)
    assert [n for _, n in (first, second, third)] == [1, 2, 3] and len({a for a, _ in (first, second)}) == 2
    assert [line(everything), line(some), line(everything, bfloat16=True)] == [(a, 3) for a, _ in (first, second, third)]
    assert {r.provenance["data_hash"] for r in Store(tmp_path).rows()} == {everything.digest("digits"), some.digest("digits")}


def test_rows_of_other_code_are_counted(tmp_path, capsys):
    "One sentence with their number, their code and what to do; none where all rows are of this code."
    from maga.experiments.report import compute

    settings = Settings(results=str(tmp_path), device="cpu", backbone=("small_cnn",), target=("rocket",), methods=("original", "retrain"))
    compute("table6", settings)
    assert capsys.readouterr().out == ""
    store = Store(tmp_path)
    older = store.rows()[0]
    store.put(replace(older, provenance=dict(older.provenance) | {"code": "older"}))
    compute("table6", settings)
    assert capsys.readouterr().out == "1 of 2 rows were made by other code (older); another results folder computes them again.\n"
    ended = command(tmp_path, "table6", "--device", "cpu", "--backbone", "small_cnn", "--target", "rocket", "--methods", "original,retrain")
    assert ended.returncode == 0 and ended.stderr.count("other code (older)") == 1


def test_a_given_original(tmp_path, digit_sets):
    "From a file: nothing is trained, a killed batch goes on, TV comes with the retrain, and a file that fits nothing ends with one sentence."
    from maga.models import ModelSpec, save_checkpoint

    spec = ModelSpec.of("small_cnn", digit_sets[0])
    file = save_checkpoint(tmp_path / "mine.safetensors", spec.make(torch.Generator().manual_seed(0)), spec)
    before, results = file.read_bytes(), tmp_path / "results"
    line = ("table1", "--device", "cpu", "--target", "rocket", "--original", str(file), "--bfloat16")
    kill_when(started(results, *line, "--methods", "original,ssd,maga"), lambda: len(list((results / "rows").glob("*.json"))) >= 1)
    assert command(results, *line, "--methods", "original,ssd,maga").returncode == 0
    assert len(metrics(results)) == 3 and len(list((results / "checkpoints").glob("*"))) == 1  # the checkpoint is T
    assert all(m["TV"] is None for m in metrics(results).values())
    assert command(results, *line, "--methods", "retrain").returncode == 0
    assert len(metrics(results)) == 4 and all(m["TV"] is not None for m in metrics(results).values())
    table = pd.read_csv(results / "table1" / "table.csv")
    note = table[(table.model == "resnet18") & (table.method == "finetune") & (table.target == "rocket")].note.item()
    assert note.endswith(f"--backbone small_cnn --target rocket --methods finetune --original {file} --bfloat16")
    assert file.read_bytes() == before
    ended = command(results, "table2", "--device", "cpu", "--original", str(file))
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1 and "has the classes 10" in ended.stderr


def test_a_split_is_made_and_hashed_once(tmp_path, monkeypatch):
    "For all rows that ask for it, and for the training of their retrains."
    made, plain = [], session_module.make_split
    monkeypatch.setattr(session_module, "make_split", lambda spec, *sets: (made.append(spec.target), plain(spec, *sets))[1])
    session = Session(Store(tmp_path), "cpu")
    spec = Spec("digits", "class", "three", "small_cnn", "finetune", "digits")
    splits = [session.split(replace(spec, **changes)) for changes in ({}, {"method": "ssd"}, {"training_seed": 3}, {"target": "five"}, {})]
    assert made == ["three", "five"] and splits[0] is splits[1] is splits[2] is splits[4]


def test_failed_runs_are_tried_again_whatever_the_clock_says(tmp_path, monkeypatch):
    "Rows may lie on a file system whose clock is late or early; a batch counts what it computed all the same, and ends."
    session = Session(Store(tmp_path), "cpu")
    specs = [Spec("digits", "class", "nine", "small_cnn", method, "digits", recipe="smoke") for method in ("ssd", "delete")]
    put = Store.put

    def late(store, row):
        kept = put(store, row)
        os.utime(store.row_path(row.key), (0, 0))
        return kept

    monkeypatch.setattr(Store, "put", late)
    monkeypatch.setattr(runs_module, "row_of", raising(ValueError("no luck")))
    for _ in range(2):
        reports = []
        forget_failures(specs, session)
        assert all(row.failed for row in run_batch(specs, session, reports.append))
        assert (reports[-1].computed, reports[-1].failed) == (2, 2)
    run_batch(specs, session, reports.append)
    assert reports[-1].computed == 0


def test_an_original_written_anew_in_the_same_moment_is_another(tmp_path):
    "Clocks of file systems tick every few milliseconds: two files of one size may have the same times."
    path, digests = tmp_path / "mine.safetensors", set()
    for content in ("one", "two"):
        write_whole(path, lambda p, content=content: p.write_text(content))
        os.utime(path, (1, 1))
        digests.add(content_digest(path))
    assert len(digests) == 2
