"""Parameters that `tools/execute.py` and `tools/refresh.py --set` give a notebook: only those that it has, of its own types."""

import pytest

from .forked import script

nbformat = pytest.importorskip("nbformat")  # a machine that is lent for its GPU may lack what runs notebooks
pytest.importorskip("papermill")
pytest.importorskip("nbclient")
execute, refresh = script("execute"), script("refresh")
SOURCE = 'preset = "smoke"  # a text\nseed = 0\nquick = True\nrate = 0.5\nseeds = [0]'
VALUES = {"preset": "7", "seed": 1, "quick": False, "rate": 1.0, "seeds": [1, 2]}
TEXTS = ["preset=7", "seed=1", "quick=False", "rate=1", "seeds=[1, 2]"]


@pytest.fixture
def notebook(tmp_path):
    path = tmp_path / "study.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SOURCE, metadata={"tags": ["parameters"]})]), path)
    return path


@pytest.fixture
def run(monkeypatch):
    "What papermill is given, and the source of the first cell that a kernel would run."
    seen = {}

    class Client:
        def __init__(self, notebook, **options):
            self.notebook = notebook

        def execute(self):
            exec(self.notebook.cells[0].source, {}, seen)

    monkeypatch.setattr(refresh, "NotebookClient", Client)
    monkeypatch.setattr(execute.papermill, "execute_notebook", lambda path, output, parameters, **options: seen.update(parameters))
    return seen


def test_values_have_the_types_of_the_notebook(notebook, run, tmp_path):
    assert execute.main([str(notebook), str(tmp_path / "out.ipynb"), *TEXTS]) == 0 and run == VALUES
    run.clear()
    before = nbformat.read(notebook, 4).cells[0].source
    refresh.main([str(notebook), *(part for text in TEXTS for part in ("--set", text))])
    assert run == VALUES and nbformat.read(notebook, 4).cells[0].source == before


@pytest.mark.parametrize("text, says", [("presett=smoke", "no parameter 'presett'; it has preset, seed"), ("seed=one", "0 by default; expected another int, not 'one'")])
def test_what_a_notebook_cannot_take_is_refused(notebook, run, tmp_path, capsys, text, says):
    before = notebook.read_bytes()
    assert execute.main([str(notebook), str(tmp_path / "out.ipynb"), text]) == 1 and says in capsys.readouterr().err
    with pytest.raises(SystemExit, match=says):
        refresh.main([str(notebook), "--set", text])
    assert not run and notebook.read_bytes() == before
