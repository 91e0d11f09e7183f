"""The checks of tools/check.py see what they are there for: each is run on a small tree with one planted fault."""

import json
import os
import subprocess

import pytest

from .forked import script

check = script("check")


def notebook(path, *cells, tags=()):
    "A notebook of cells; one that begins with a title is markdown."
    path.parent.mkdir(parents=True, exist_ok=True)
    made = [
        {"cell_type": "markdown" if c.startswith("# ") else "code", "metadata": {"tags": list(tags)}, "source": c.splitlines(keepends=True)}
        for c in cells
    ]
    path.write_text(json.dumps({"cells": made}))


@pytest.fixture
def tree(tmp_path):
    "A project without a fault: three modules in two folders, their notebooks, one paper notebook, a front page."
    for name, text in {
        "__init__.py": "def door():\n    from maga.methods import contract\n",
        "data.py": "import math\n",
        "methods/__init__.py": "from maga.methods import contract\n",
        "methods/contract.py": "from ..data import thing\n",
        "experiments/__init__.py": "",
        "experiments/runs.py": "def late():\n    from maga.methods.contract import thing\n",
    }.items():
        (tmp_path / "maga" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "maga" / name).write_text(text)
    notebook(tmp_path / "nbs/000_data.ipynb", "# Data\nSee [contract](300_contract.ipynb) and `300_contract`.", "#| default_exp data")
    notebook(tmp_path / "nbs/300_contract.ipynb", "# Contract", "#| default_exp methods.contract", "#| export\nx = 1")
    notebook(tmp_path / "nbs/500_runs.ipynb", "# Runs", "#| default_exp experiments.runs")
    notebook(tmp_path / "nbs/experiments/paper/table1.ipynb", 'preset = "smoke"\nseeds: str = ""', tags=["parameters"])
    (tmp_path / "README.md").write_text("[Data](nbs/000_data.ipynb#data), `nbs/300_contract.ipynb`\n```\n[not a link](nowhere.md)\n```\n")
    return tmp_path


CHECKS = (check.notebooks_are_whole, check.imports_run_one_way, check.nothing_is_too_long, check.references_resolve, check.numbers_fit)


def found(tree):
    "What all checks find that need no git."
    check.cells_of.cache_clear()
    return [p for c in CHECKS for p in c(tree)] + check.differing_parameters(tree, {"preset", "seeds"})


def test_a_tree_without_faults(tree):
    assert found(tree) == []


def test_stale_exports_are_seen_and_left_as_they_are(tree, monkeypatch):
    "Types, installation and notebooks read the modules meanwhile, and a second check finds the same."
    subprocess.run(["git", "init", "--quiet"], cwd=tree, check=True)
    for command, line in {"nbdev_export": "echo x = 1 > maga/data.py; echo > maga/new.py", "nbdev_clean": "true"}.items():
        (tree / ".git" / command).write_text(f"#!/bin/sh\n{line}\n")
        (tree / ".git" / command).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tree / '.git'}:{os.environ['PATH']}")
    before = (tree / "maga/data.py").read_text()
    stale = [f"`make export` changes maga/{name}.py: run it and commit the result." for name in ("data", "new")]
    assert check.exports_are_fresh(tree) == stale == check.exports_are_fresh(tree)
    assert (tree / "maga/data.py").read_text() == before and not (tree / "maga/new.py").exists()


def test_an_error_on_the_front_page_is_seen(tree):
    cell = {"cell_type": "code", "metadata": {}, "source": [], "outputs": [{"output_type": "error"}]}
    (tree / "nbs/index.ipynb").write_text(json.dumps({"cells": [cell]}))
    assert found(tree) == ["index.ipynb holds a cell that ended in an error: run it again."]


def test_two_cells_with_one_id_are_seen(tree):
    cells = [{"cell_type": "markdown", "metadata": {}, "source": [], "id": i} for i in "aba"]
    (tree / "nbs/index.ipynb").write_text(json.dumps({"cells": cells}))
    assert found(tree) == ["index.ipynb has 2 cells with the id a: give all but one another."]


def test_a_path_of_a_machine_is_seen(tree):
    "In a printed line and in a table, not in a link or a relative path."
    page = {"text/html": ["<td>/home/me/net.pth</td>"], "image/png": "/work/a"}
    outputs = [{"output_type": "stream", "text": ["to /tmp/x/y.csv, see https://x.org/home/you and results/tmp/z"]}, {"output_type": "display_data", "data": page}]
    (tree / "nbs/index.ipynb").write_text(json.dumps({"cells": [{"cell_type": "code", "metadata": {}, "source": [], "outputs": outputs}]}))
    assert found(tree) == [f"index.ipynb shows {path}, a path of one machine." for path in ("/home/me/net.pth", "/tmp/x/y.csv")]


def test_a_circle_is_seen_even_within_functions(tree):
    (tree / "maga/data.py").write_text("def late():\n    from maga.methods.contract import thing\n")
    problems = found(tree)
    assert any("circle" in p and "maga.data → maga.methods.contract" in p for p in problems)
    assert any("maga.data imports maga.methods.contract, but ground comes before methods" in p for p in problems)


def test_the_package_itself_may_import_lazily_only(tree):
    (tree / "maga/__init__.py").write_text("from maga.methods import contract\n")
    (tree / "maga/data.py").write_text("import maga\n")
    assert any("circle" in p for p in found(tree))


def test_an_import_uphill_is_seen(tree):
    (tree / "maga/methods/contract.py").write_text("import maga.experiments.runs as runs\n")
    (tree / "maga/experiments/runs.py").write_text("")
    assert found(tree) == ["maga.methods.contract imports maga.experiments.runs, but methods comes before experiments."]


def test_relative_imports_are_resolved(tree):
    imports = {(i.importer, i.imported, i.in_function) for i in check.all_imports(tree)}
    assert imports == {
        ("maga.methods", "maga.methods.contract", False),
        ("maga.methods.contract", "maga.data", False),
        ("maga.experiments.runs", "maga.methods.contract", True),
    }


def test_long_modules_cells_and_lines_are_seen(tree):
    (tree / "maga/data.py").write_text("x = 1\n" * 401)
    (tree / "maga/experiments/runs.py").write_text("#" * 151 + "\n")
    notebook(tree / "nbs/300_contract.ipynb", "# Contract", "#| default_exp methods.contract", "#| export\n" + "x = 1\n" * 61)
    problems = found(tree)
    assert len(problems) == 3
    assert "401 lines" in problems[0] and "151 characters" in problems[1] and "61 lines" in problems[2]


def test_a_long_cell_may_be_one_class(tree):
    notebook(tree / "nbs/300_contract.ipynb", "#| default_exp methods.contract", "#| export\nclass A:\n" + "    x = 1\n" * 90)
    assert found(tree) == []


@pytest.mark.parametrize(
    "text, says",
    [
        ("[x](301_gone.ipynb)", "leads nowhere"),
        ("[`x`](301_gone.ipynb), [`y`](300_contract.ipynb)", "leads nowhere"),
        ('<img src="images/gone.png" width="9">', "leads nowhere"),
        ('<a href="gone.md">x</a>', "leads nowhere"),
        ("[x][r]\n\n[r]: gone.md", "gone.md leads nowhere"),
        ("[x](300_contract.ipynb#gone)", "#gone leads nowhere"),
        ("[x](#gone)", "#gone leads nowhere"),
        ("`nbs/gone.ipynb`", "there is no nbs/gone.ipynb"),
        ("`301_gone`", "there is no 301_gone"),
        ("see notebook 09c", "earlier layout"),
        ("as in 03b", "earlier layout"),
        ("`09a_newer`", "earlier layout"),
    ],
)
def test_broken_references_are_seen(tree, text, says):
    notebook(tree / "nbs/000_data.ipynb", f"# Data\n{text}", "#| default_exp data")
    (problem,) = found(tree)
    assert says in problem and "nbs/000_data.ipynb" in problem


@pytest.mark.parametrize(
    "text",
    [
        "`{n:02d}`",
        "[x](https://example.org/301_gone.ipynb)",
        "notebooks 300 and 301",
        "[x](#a-part-of-it), [y](300_contract.ipynb#contract)\n\n## A part, of `it`",
        "[x][r], [^1]\n\n[r]: 300_contract.ipynb\n[^1]: A note.",
        "0.03b",
        "write `[x](gone.ipynb)`",
        "``[`x`](gone.ipynb)``",
    ],
)
def test_what_only_looks_like_a_reference(tree, text):
    notebook(tree / "nbs/000_data.ipynb", f"# Data\n{text}", "#| default_exp data")
    assert found(tree) == []


@pytest.mark.parametrize(
    "name, module, says",
    [
        ("301_contract", "methods.contract", "a gap"),
        ("400_contract", "methods.contract", "belongs to another hundred"),
        ("300_other", "methods.contract", "the same name"),
        ("3_contract", "methods.contract", "NNN_name"),
    ],
)
def test_numbers(tree, name, module, says):
    (tree / "nbs/300_contract.ipynb").unlink()
    notebook(tree / f"nbs/{name}.ipynb", "# Contract", f"#| default_exp {module}")
    check.cells_of.cache_clear()
    (problem,) = check.numbers_fit(tree)
    assert says in problem


def test_notebooks_and_modules_belong_together(tree):
    (tree / "maga/alone.py").write_text("")
    assert found(tree) == ["maga.alone has no notebook, or its notebook no module."]


def test_parameters_are_compared_by_name(tree):
    notebook(tree / "nbs/experiments/paper/table1.ipynb", 'preset = "smoke"\ntarget = ""', tags=["parameters"])
    assert found(tree) == ["table1.ipynb lacks seeds and has target, which the settings do not have."]
