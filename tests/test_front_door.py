"""What a newcomer runs first: the program of the front page, and the demonstration."""

import configparser
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .forked import ENVIRONMENT, ROOT, Forked


def test_the_program_of_the_front_page(tmp_path):
    "At most 15 lines; run from elsewhere it forgets the digit and keeps the rest."
    program = re.search(r"```python\n(import torch.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    assert len([line for line in program.splitlines() if line.strip()]) <= 15
    done = Forked(exec, program, folder=tmp_path).ended()
    assert done.returncode == 0, done.stderr
    before, after = (dict(re.findall(r"(\w+) ([\d.]+)", line)) for line in done.stdout.strip().splitlines())
    assert float(before["A_f"]) > 80 and float(after["A_f"]) <= 5
    assert float(after["A_r"]) >= float(before["A_r"]) - 2


def test_the_demonstration(tmp_path):
    "The retrain knows nothing of the digit and MaGA neither. That equal runs give equal bits is tested where runs are (504)."
    results = tmp_path / "demo"
    results.mkdir()
    notebook = ROOT / "nbs" / "experiments" / "studies" / "demo.ipynb"
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(notebook), str(results / "demo.ipynb"), "-k", "python3"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*command, "-p", "results", str(tmp_path), "-p", "device", "cpu", "-p", "network", "small_cnn"], env=os.environ | ENVIRONMENT, check=True, **quiet)
    table = list(csv.DictReader((results / "table.csv").read_text().splitlines()))
    assert list(table[0]) == ["method", "A_r", "A_f", "MIA", "TV", "seconds"]
    rows = {row["method"]: row for row in table}
    assert list(rows) == ["original", "retrain", "maga"]
    assert float(rows["retrain"]["A_f"]) == 0 and float(rows["maga"]["A_f"]) <= 5
    assert float(rows["maga"]["A_r"]) >= float(rows["original"]["A_r"]) - 2
    assert {p.suffix for p in results.iterdir()} >= {".png", ".csv", ".ipynb", ".safetensors"}


README = (ROOT / "README.md").read_text(encoding="utf-8")
STUDIES = sorted((ROOT / "nbs" / "experiments").rglob("*.ipynb"))


def outputs_of(notebook):
    "All text that a notebook's cells put out."
    outputs = [o for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"] for o in c.get("outputs", [])]
    return "\n".join("".join(o.get("text", o.get("data", {}).get("text/plain", []))) for o in outputs)


def section(title):
    "What is below a heading of the front page."
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_rows_of_results_are_the_frontiers():
    "Each is printed by the notebook that the section links to, in this order; that its outputs are the published rows' is tested where they are."
    rows = [line for line in section("Eleven rows of results").splitlines() if line.startswith("| ")][1:]
    printed = outputs_of(ROOT / "nbs/experiments/studies/frontier.ipynb").splitlines()
    assert len(rows) == 11 and rows == [line for line in printed if line.startswith("| ")]


NUMBER = r"\d+\.\d+(?: ± \d+\.\d+)?"


def test_the_numbers_of_the_front_page_are_those_of_the_notebooks():
    """Each number with a point, whole and with its interval, is in the output of a notebook that the line links to.

    One with % or points is the same number, or a number there rounds to it.
    """
    checked = 0
    for line in "".join(map(section, ("What was found", "What was reproduced, and what was not", "What to use when"))).splitlines():
        said = "\n".join(outputs_of(ROOT / link) for link in re.findall(r"\]\((nbs/\S+?\.ipynb)\)", line))
        there, rounded = {*re.findall(rf"(?<![\d.]){NUMBER}(?![\d.]*\d)", said)}, {round(float(n)) for n in re.findall(r"\d+(?:\.\d+)?", said)}
        numbers = re.findall(rf"(?<![\w.]){NUMBER}(?![\w.]*\d)", line)
        whole = re.findall(r"(?<![\w.])(\d+)(?= (?:%|points?))", line)
        assert {*numbers} <= there | {n.split(" ± ")[0] for n in there}, (line, {*numbers} - there)
        assert {*map(int, whole)} <= rounded, (line, whole)
        checked += len(numbers)
    assert checked > 70


def test_bounds_are_about_the_mean_of_the_five_retrains():
    "The mean of the MIA of the five is no middle of the smallest and the largest one."
    kept = {line["quantity"]: line for line in csv.DictReader((ROOT / "nbs/experiments/studies/kept/retrains.csv").read_text().splitlines())}
    for quantity, five in (("A_r", (75.92, 75.49, 75.91, 75.55, 75.64)), ("MIA", (12.6, 10.8, 12.8, 12.4, 10.8))):
        said = [float(kept[quantity][c]) for c in ("lowest", "mean", "highest")]
        assert said == pytest.approx([min(five), sum(five) / 5, max(five)], abs=0.05)
    assert "MIA 10.8 to 12.8, mean 11.88" in outputs_of(ROOT / "nbs/experiments/studies/fresh_head.ipynb")


def test_no_experiment_is_without_outputs():
    assert [n for n in STUDIES if not outputs_of(n) and '"image/png"' not in n.read_text(encoding="utf-8")] == []


def test_the_front_page_links_every_notebook():
    linked = {ROOT / link for link in re.findall(r"\]\((nbs/\S+?\.ipynb)\)", README)}
    assert linked >= {*STUDIES, *(ROOT / "nbs").glob("[0-9]*.ipynb")}


def test_the_first_command_is_within_the_first_screen():
    assert README[: README.index("make demo")].count("\n") <= 15


def test_default_folders_are_the_repositorys(monkeypatch, tmp_path):
    "A notebook opened by hand finds the data and the store of the repository; a given folder is taken as it is."
    from maga.experiments.settings import Settings

    for folder in (ROOT, ROOT / "nbs", ROOT / "nbs" / "experiments" / "paper"):
        monkeypatch.chdir(folder)
        assert (Settings().data_folder, Settings().results_folder) == (ROOT / "data", ROOT / "results")
        assert Settings("laptop", results="published").results_folder == ROOT / "results" / "published" / "laptop"
        assert Settings(data_root="d", results="r").data_folder == Path("d") and Settings(results="r").results_folder == Path("r")
    copied = re.findall(r"(?<=cp )results/\S+(?= nbs/images)", (ROOT / "Makefile").read_text())
    assert copied and all((ROOT / path).is_relative_to(Settings("laptop", results="published").results_folder) for path in copied)
    monkeypatch.chdir(tmp_path)
    assert (Settings().data_folder, Settings().results_folder) == (tmp_path / "data", tmp_path / "results")


def test_a_copy_of_the_package_finds_the_clone_that_it_is_opened_in(monkeypatch, tmp_path, capsys):
    "Outside of a clone nothing is published, and no results folder is made for it."
    import maga
    from maga.experiments.__main__ import main
    from maga.experiments.store import experiments_folder

    monkeypatch.setattr(maga, "__path__", [str(tmp_path / "maga")])
    for folder in (ROOT, ROOT / "nbs", ROOT / "nbs" / "experiments" / "paper"):
        monkeypatch.chdir(folder)
        assert experiments_folder() == ROOT / "nbs" / "experiments"
    monkeypatch.chdir(tmp_path)
    assert experiments_folder() is None
    for move in ("publish", "restore"):
        assert main([move]) == 1 and "run this inside a clone" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_extra_is_installed_without_replacing_the_clone_by_a_copy():
    for page in (ROOT / "README.md", *(ROOT / "nbs").rglob("*.ipynb"), *(ROOT / "maga").rglob("*.py")):
        assert not re.search(r"""pip install \\?["']\.\[""", page.read_text(encoding="utf-8")), page


def test_what_the_package_imports_is_required():
    "By the requirements, or by an extra for users."
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    stated = " ".join(config["DEFAULT"][key] for key in ("requirements", "datasets_requirements", "vllm_requirements"))
    required = {"PIL" if name == "pillow" else name.replace("scikit-learn", "sklearn") for name in re.findall(r"(?:^| )([\w-]+)", stated)}
    lines = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "maga").rglob("*.py"))
    imported = {a or b for a, b in re.findall(r"^ *(?:import (\w+)|from (\w+)[\w.]* import )", lines, re.M)}
    assert len(imported) > 20 and imported - sys.stdlib_module_names - {"maga"} <= required


@pytest.mark.parametrize("notebook", STUDIES, ids=lambda p: p.stem)
def test_no_experiments_default_folder_depends_on_where_it_is_opened(notebook):
    "Each folder among the parameters is read by the settings, or by `in_repository`."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    tagged = "".join("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", []))
    assert "../" not in tagged
    for name in re.findall(r'^(\w+) = "(?:data|results)\b', tagged, re.M):
        assert "settings_in(globals())" in code or f"in_repository({name})" in code or f"{name}={name}" in code, name
