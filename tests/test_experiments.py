"The store with killed processes, the command, and the notebooks as papermill and snakemake run them."

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from maga.experiments.report import EXPERIMENTS, paper_folder, together
from maga.experiments.settings import Settings, parameter_cell, parameters_differ, settings_of
from maga.experiments.store import Row, Store, key_of
from maga.experiments.studies import STUDIES
from maga.methods.contract import METHODS

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = {p.stem: p for p in (ROOT / "nbs" / "experiments").rglob("*.ipynb")}
SMALL = (
    "table6",
    "--preset",
    "smoke",
    "--device",
    "cpu",
    "--backbone",
    "resnet10",
    "--target",
    "rocket",
    "--methods",
    "original,retrain,random_label,no_noise,maga",
)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "JUPYTER_PLATFORM_DIRS": "1"}


def command(results: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "maga.experiments", *arguments, "--results", str(results)]


def call(line: list[str], **more) -> subprocess.CompletedProcess:
    return subprocess.run(line, capture_output=True, text=True, env=environment(), cwd=ROOT, **more)


def metrics(results: Path) -> dict[str, dict[str, float]]:
    "Key -> metrics, as the files have them."
    return {p.stem: json.loads(p.read_text())["metrics"] for p in (results / "rows").glob("*.json")}


def kill_when(line: list[str], moment) -> None:
    "Start a command and end it with SIGKILL as soon as the moment has come."
    process = subprocess.Popen(line, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while not moment():
            assert process.poll() is None, "the command ended before the moment came"
            assert time.monotonic() < until, "the moment never came"
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_three_kills_change_nothing(tmp_path):
    "Killed while the first model is trained, while the first rows are written, and with a helper beside: the rows are those of a batch left alone."
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert call(command(alone, *SMALL, "--processes", "1")).returncode == 0
    line, rows, claims = command(killed, *SMALL), killed / "rows", killed / "claims"

    def first_training() -> bool:  # the run's claim and the model's: training has begun, nothing is finished
        return claims.is_dir() and len(list(claims.iterdir())) >= 2

    def finished(n: int):
        return lambda: rows.is_dir() and len(list(rows.glob("*.json"))) >= n

    kill_when([*line, "--processes", "1"], first_training)
    assert not metrics(killed)
    kill_when([*line, "--processes", "1"], finished(1))
    assert 1 <= len(metrics(killed)) < 3
    working = Store(killed).claims.taken
    kill_when([*line, "--processes", "2"], lambda: finished(2)() and working())
    until = time.monotonic() + 20
    while working():
        assert time.monotonic() < until, "a helper works on although its command was killed"
        time.sleep(0.05)
    assert call(line).returncode == 0
    assert metrics(killed) == metrics(alone) and len(metrics(alone)) == 5
    assert not list(claims.iterdir())


def test_helpers_make_the_same_rows(tmp_path):
    "Two processes at one command: each row is made once, by one or the other, and a wrong number is one sentence."
    line = command(tmp_path, *SMALL, "--processes", "2")
    assert call(line).returncode == 0
    assert len(metrics(tmp_path)) == 5 and not list((tmp_path / "claims").iterdir())
    ended = call(command(tmp_path, *SMALL, "--processes", "-1"))
    assert (ended.returncode, ended.stderr.strip().count("\n")) == (1, 0) and "--processes is -1" in ended.stderr


WORKER = """
import sys
from pathlib import Path
import maga.experiments.runs as runs
import maga.experiments.session as session
from maga.experiments.report import experiment, open_session, selected
from maga.experiments.settings import Settings

train, attempt, log = session._train, runs.attempt, Path(sys.argv[1], f"log{sys.argv[2]}")
log.touch()

def note(kind, key):
    with log.open("a") as f:
        f.write(f"{kind} {key}\\n")

def noted_train(session, training):
    note("train", training.key)
    train(session, training)

def noted_attempt(session, resolved):
    note("run", resolved.key)
    return attempt(session, resolved)

session._train, runs.attempt = noted_train, noted_attempt
settings = Settings(results=sys.argv[1], device="cpu", backbone=("resnet10",), target=("rocket",))
specs = [c.specs((0,))[0] for c in experiment("table6").cells(settings) if selected(c, settings)]
rows = runs.run_batch(specs, open_session(settings))
print(len(rows), sum(r.failed for r in rows))
"""


def test_two_processes_share_the_work(tmp_path):
    "No run and no training is done twice, and each process has all rows in the end."
    both = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(n)], env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for n in range(2)
    ]
    printed = [p.communicate(timeout=300)[0].split() for p in both]
    assert printed == [["6", "0"], ["6", "0"]]
    work = [line for n in range(2) for line in Path(tmp_path, f"log{n}").read_text().splitlines()]
    assert len(work) == len(set(work)), f"done twice: {sorted(w for w in set(work) if work.count(w) > 1)}"
    assert sum(w.startswith("run") for w in work) == 6 == len(metrics(tmp_path))
    assert sum(w.startswith("train") for w in work) == 2


def test_errors_are_one_sentence(tmp_path):
    for wrong, word in (("table9", "table8"), ("table1 --device tpu9", "device"), ("table1 --judge nowhere.safetensors", "nowhere")):
        ended = call(command(tmp_path, *wrong.split()))
        assert (ended.returncode, ended.stderr.strip().count("\n")) == (1, 0) and word in ended.stderr, ended.stderr


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Path:
    "All tables and figures by the command. Test processes that want it at once share the work, as any two processes would."
    base = tmp_path_factory.getbasetemp()
    results = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "smoke"
    ended = call(command(results, "all", "--device", "cpu"), timeout=900)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return results


def test_all_is_filled(smoke):
    "Every experiment has its table, every line has its numbers or says why not, and no run failed."
    for name in together():
        table = pd.read_csv(smoke / name / "table.csv")
        assert len(table) > 0
        if "A_r" in table:
            assert (table.A_r.notna() | table.note.notna()).all(), name
            filled = table.seed.notna() if name == "frontier" else table.seeds == 1
            assert filled.all(), (name, table.note.dropna().tolist())
            numbers = table[~table.method.isin(["original"])][["A_r", "A_f", "MIA", "TV", "seconds"]]
            assert numbers.notna().all().all(), name
    everything = pd.read_parquet(smoke / "all.parquet")
    assert everything.error.isna().all() and everything.key.is_unique and len(everything) == len(pd.read_csv(smoke / "all.csv"))
    assert not list((smoke / "claims").iterdir())


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
    costs = table.set_index("method").cost
    assert costs["retrain"] == 1 and costs["original"] == 0 and (costs.drop("original") > 0).all()
    assert table.neighbour_tv_ratio.notna().all() and table.set_index("method").neighbour_tv_ratio["original"] > 1


def test_second_time_computes_nothing(smoke):
    before = {p: p.stat().st_mtime_ns for part in ("rows", "checkpoints", "outputs") for p in (smoke / part).iterdir()}
    assert call(command(smoke, "all", "--device", "cpu")).returncode == 0
    assert {p: p.stat().st_mtime_ns for part in ("rows", "checkpoints", "outputs") for p in (smoke / part).iterdir()} == before


def execute(notebook: Path, output: Path, *parameters: str) -> subprocess.CompletedProcess:
    return call([sys.executable, "tools/execute.py", str(notebook), str(output), *parameters], timeout=600)


@pytest.mark.parametrize("name", ["table1", "figure6", "frontier"])
def test_notebooks_run_and_draw(smoke, name):
    "papermill runs a table, a figure and the frontier; the picture has something on it."
    ended = execute(NOTEBOOKS[name], smoke / name / f"{name}.ipynb", "preset=smoke", "device=cpu", f"results={smoke}")
    assert ended.returncode == 0, ended.stderr[-2000:]
    pixels = np.asarray(Image.open(smoke / name / f"{name}.png").convert("RGB"))
    dark = (pixels < 200).any(-1)
    assert dark.mean() > 0.01 and len(np.unique(pixels[dark], axis=0)) > 5


@pytest.mark.parametrize("name", [e.name for e in STUDIES])
def test_studies_run(smoke, tmp_path, name):
    "A study apart from `all` runs beside the rows that the tables left: every line that was selected has its numbers, and the earlier run is shown."
    results = shutil.copytree(smoke, tmp_path / "results")
    few = ["methods=original,retrain,ssd,maga,delete"] if name == "methods" else []  # `beyond` runs every method
    ended = execute(NOTEBOOKS[name], tmp_path / f"{name}.ipynb", "preset=smoke", "device=cpu", f"results={results}", *few)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "Earlier run, not of the present code" in (tmp_path / f"{name}.ipynb").read_text()
    table = pd.read_csv(results / name / "table.csv")
    assert len(table) > 0 and not (smoke / name).exists()
    if "A_r" in table:
        run = table[table.note.isna()]
        assert len(run) > 0 and run.A_r.notna().all() and table.note.dropna().str.startswith("not run").all()


def test_the_record_of_the_search_is_shown(tmp_path):
    ended = execute(NOTEBOOKS["search"], tmp_path / "search.ipynb", "lines=0")
    assert ended.returncode == 0, ended.stderr[-2000:]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_parameters(name):
    "Every experiment's notebook takes every setting, in one tagged cell that papermill reads."
    assert parameters_differ(NOTEBOOKS[name]) == ""
    papermill = pytest.importorskip("papermill")
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


def test_snakemake_plans_one_gpu_a_job(tmp_path):
    "With the Slurm profile: shared models first, then the notebooks that need them, one GPU each."
    line = [sys.executable, "-m", "snakemake", "--dry-run", "--profile", "profiles/slurm", "--config", f"results={tmp_path}", "preset=paper"]
    ended = call([*line, "seeds=0", "backbone=resnet18", "target=rocket", "only=table1,table6,figure5"])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    planned = jobs(ended.stdout + ended.stderr)
    work = [(rule, text) for rule, text in planned if rule in ("model", "notebook")]
    assert all(re.search(r"\bgpu=1\b", text) for _, text in work)
    models = {re.search(r"key=(\w+)", text).group(1) for rule, text in work if rule == "model"}
    needs = {
        re.search(r"name=(\w+)", text).group(1): set(re.findall(r"jobs/(\w{16})", text.split("output:")[0]))
        for rule, text in work
        if rule == "notebook"
    }
    assert set(needs) == {"table1", "table6", "figure5"}
    assert len(models) == 3  # an original and a retrain on CIFAR-100, an original on CIFAR-10
    assert needs["table1"] == needs["table6"] and len(needs["table1"]) == 2 and len(needs["figure5"]) == 1
    assert needs["table1"] | needs["figure5"] == models  # every notebook waits for its models, every model is for a notebook
    assert call([*line, "presett=paper"]).returncode != 0


def test_settings_reach_the_command():
    "Settings that are written as options, parameters or text are read as the same settings."
    from maga.experiments.__main__ import given_settings, parser

    changes = (("maga", "noise.size", 32), ("ssd", "order", "shuffled"))
    some = Settings("paper", "d e", "r", "cpu", (0, 1), "a.safetensors", ("vit_small",), ("sea",), ("maga",), "m.safetensors", True, changes)
    assert given_settings(parser().parse_args(["table1", *shlex.split(some.options())])) == some
    assert parser().parse_args(some.command("table1").split()[3:]).name == "table1"
    assert settings_of(**some.texts()) == some
    cell: dict = {}
    exec(parameter_cell(), cell)
    assert settings_of(**{k: v for k, v in cell.items() if k != "__builtins__"}) == Settings()


ROW_BEFORE_THE_MOVE = """{
 "key": "9ee575e08ece5d73",
 "spec": {
  "data": "digits", "task": "class", "target": "nine", "backbone": "resnet10", "method": "no_noise", "preset": "digits",
  "changes": [["fit.epochs", 2]], "recipe": "smoke", "judge": "features", "exemplars": 10, "measures": "all", "references": [0, 1, 2],
  "training_seed": 0, "unlearning_seed": 0, "evaluation_seed": 0, "original": ""
 },
 "metrics": {"neighbour_tv": 2.1358577328303503, "neighbour_tv_train": 2.1109258188796294, "A_r": 95.37037037037037, "rmia_auc": null},
 "seconds": {"unlearning": 0.7184683229999678, "evaluation": 1.898563567999986, "loading": 1.7427269400000114},
 "provenance": {"python": "3.11.7", "torch": "2.13.0+cpu", "commit": "2e2c016225ce", "code": "3772ab36d0a90b15", "date": "2026-11-25"},
 "dependencies": {"original": "4d87fe78e7da963c", "retrain": "9d3e336760a5ff63", "transition": "e57c914adc3b5988"},
 "missing": {"rmia_auc": "rmia_auc is not defined for the class task, only for: subclass, random."},
 "made_from_forgotten": ["checkpoints/4d87fe78e7da963c.safetensors (the original model)"],
 "error": null
}"""


def test_a_row_from_before_the_move_is_read(tmp_path):
    "A row of the earlier layout is found by the same key, and its ratio has the present name; a row with present names is left as it is."
    from maga.experiments.session import Session, resolve

    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "9ee575e08ece5d73.json").write_text(ROW_BEFORE_THE_MOVE)
    store = Store(tmp_path)
    row = store.get("9ee575e08ece5d73")
    assert row is not None and {"neighbour_tv_ratio", "neighbour_tv_ratio_train"} <= row.metrics.keys()
    assert row.metrics["neighbour_tv_ratio"] == 2.1358577328303503 and "neighbour_tv" not in row.metrics
    assert resolve(Session(store, "cpu"), row.spec).key == row.key
    again = Row.from_json(row.to_json())
    assert again.metrics.keys() == row.metrics.keys() and again.spec == row.spec
    both = Row(key_of("both"), row.spec, {"neighbour_tv": 30.0, "neighbour_tv_ratio": 2.0})  # percent and ratio
    assert Row.from_json(both.to_json()).metrics == both.metrics


def test_a_given_original(tmp_path):
    "From a file: nothing is trained, a killed batch goes on, TV comes with the retrain, and a file that fits nothing ends with one sentence."
    from maga.models import ModelSpec, save_checkpoint
    from maga.sources import load
    from maga.training import PRETRAINING, Examples, fit

    train, g = load("digits")[0], torch.Generator().manual_seed(0)
    spec = ModelSpec.of("resnet10", train)
    file = save_checkpoint(tmp_path / "mine.safetensors", fit(spec.make(g), Examples.of(train), PRETRAINING["digits"], g), spec)
    before, results = file.read_bytes(), tmp_path / "results"
    line = ("table1", "--device", "cpu", "--target", "rocket", "--original", str(file), "--bfloat16")
    kill_when(command(results, *line, "--methods", "original,ssd,maga"), lambda: len(list((results / "rows").glob("*.json"))) >= 1)
    assert call(command(results, *line, "--methods", "original,ssd,maga")).returncode == 0
    assert len(metrics(results)) == 3 and len(list((results / "checkpoints").glob("*"))) == 1  # the checkpoint is T
    assert all(m["TV"] is None for m in metrics(results).values())
    assert call(command(results, *line, "--methods", "retrain")).returncode == 0
    assert len(metrics(results)) == 4 and all(m["TV"] is not None for m in metrics(results).values())
    table = pd.read_csv(results / "table1" / "table.csv")
    note = table[(table.model == "resnet18") & (table.method == "finetune") & (table.target == "rocket")].note.item()
    assert note.endswith(f"--backbone resnet10 --target rocket --methods finetune --original {file} --bfloat16")
    assert file.read_bytes() == before
    ended = call(command(results, "table2", "--device", "cpu", "--original", str(file)))
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1 and "has the classes 10" in ended.stderr
