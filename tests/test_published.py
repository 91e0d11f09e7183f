"Tables drawn from published rows: without data and checkpoints, and equal to those that the notebooks show."

import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest

from maga.experiments.published import PublishedSession, check_published, published_folder, read_rows
from maga.experiments.report import EXPERIMENTS, Result, compute, open_session, together
from maga.experiments.settings import Settings
from maga.experiments.store import RETRAIN
from maga.experiments.tables import side_by_side

NOTEBOOKS = {p.stem: p for p in (Path(__file__).parents[1] / "nbs" / "experiments").rglob("*.ipynb")}
SETTINGS = Settings("laptop", data_root="no data here", results="published")


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    "A session over the published rows, in a folder without data."
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield open_session(SETTINGS)
    os.chdir(before)


def shown_tables(name: str) -> list[str]:
    "The HTML of `side_by_side(result)` in the experiment's notebook, as it is kept."
    cells = json.loads(NOTEBOOKS[name].read_text())["cells"]
    tables = [c for c in cells if "".join(c["source"]) == "side_by_side(result)"]
    return ["".join(o["data"]["text/html"]) for c in tables for o in c["outputs"]]


@pytest.mark.parametrize("name", together())
def test_a_table_is_drawn_from_published_rows(session, name):
    "Nothing is trained or loaded, and the notebook shows the same table."
    result: Result = compute(name, SETTINGS, session)
    assert isinstance(session, PublishedSession) and len(result.table)
    drawn = session.store.folder / name / "table.csv"
    assert len(pd.read_csv(drawn)) == len(result.table)
    assert all(not row.failed for some in result.rows for row in some)
    for shown in shown_tables(name):
        assert shown == side_by_side(result)._repr_html_()


def test_the_front_page_says_what_is_published(session):
    "The number of runs, and the experiments of which none was run."
    page = (Path(__file__).parents[1] / "README.md").read_text()
    assert f"{len(read_rows(published_folder()))} runs of the preset `laptop` are published" in page
    said = "\n".join(line for line in page.splitlines() if line.endswith("| not run |"))
    without = {name for name in together() if not any(compute(name, SETTINGS, session).rows) and EXPERIMENTS[name].cells(SETTINGS)}
    assert without == set(re.findall(r"/(\w+)\.ipynb", said))


def test_a_retrain_is_a_true_retrain_everywhere():
    "A retrain's row starts from no other model, and a method's row names the retrain that it was compared with."
    rows = read_rows(published_folder()).values()
    retrains = {row.dependencies["retrain"] for row in rows if row.spec.method == RETRAIN}
    assert retrains
    assert all(row.metrics["cost"] == 1 and row.metrics["TV"] == 0 for row in rows if row.spec.method == RETRAIN and not row.spec.original)
    assert all(row.dependencies["retrain"] for row in rows)


def test_published_files_are_small_and_whole():
    folder = published_folder()
    check_published(folder)
    assert (folder / "rows.parquet").stat().st_size < 3e6
    assert sum(p.stat().st_size for p in folder.rglob("*.safetensors")) < 12e6


def test_published_rows_speak_of_no_machine():
    text = json.dumps([row.to_json() for row in read_rows(published_folder()).values()])
    assert "/home" not in text and "/work" not in text and "/root" not in text
