"""The site: README, the notebooks in their order with the outputs that they keep, and the package's reference. `make docs` builds it."""

import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "docs"))

from reference import described, escaped  # noqa: E402

import maga  # noqa: E402

project, author, copyright, release = "maga", "the maga authors", "2026 onwards, the maga authors", maga.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.apidoc", "sphinx.ext.mathjax", "sphinxcontrib.mermaid", "sphinx_copybutton"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "nbs/**", "docs/api/**"]
exclude_patterns = ["nbs/index.ipynb", "**/.ipynb_checkpoints"]  # README.md is made from nbs/index.ipynb
html_theme, html_title = "furo", "maga"
html_static_path, html_css_files = ["static"], ["wide.css"]

nb_execution_mode = "off"  # stored outputs are shown
nb_merge_streams = True
nb_code_prompt_show = "Tests and imports"
nb_code_prompt_hide = "Tests and imports"
myst_enable_extensions = ["dollarmath", "amsmath", "html_image"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3
myst_dmath_double_inline = True
mermaid_fullscreen, mermaid_height = False, "auto"
suppress_warnings = ["mystnb.unknown_mime_type"]

apidoc_modules = [
    {"path": ROOT / "maga", "destination": "docs/api", "exclude_patterns": ["**/_modidx.py", "**/__main__.py"], "separate_modules": True, "module_first": True}
]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}

CHAPTERS = {
    "The ground": "nbs/0*",
    "Measures": "nbs/1*",
    "Judges": "nbs/2*",
    "Methods": "nbs/3*",
    "Studies on digits": "nbs/4*",
    "Experiments": "nbs/5*",
    "Benchmark": "nbs/6*",
    "Your own model": "nbs/7*",
    "The paper": "nbs/experiments/paper/*",
    "Our studies": "nbs/experiments/studies/*",
}


def contents() -> str:
    "The tables of contents that README.md gets on the site."
    parts = [f"```{{toctree}}\n:hidden:\n:maxdepth: 1\n:caption: {name}\n:glob:\n\n{pattern}\n```" for name, pattern in CHAPTERS.items()]
    parts.append("```{toctree}\n:hidden:\n:maxdepth: 2\n:caption: Reference\n\ndocs/api/modules\nCONTRIBUTING\nCHANGELOG\n```")
    return "\n\n".join(parts)


def add_contents(app, docname, source):
    if docname == root_doc:
        source[0] += "\n" + contents()


def fold_tests(app, docname, source):
    "Cells that begin with `#| hide` are folded; the cell that names the module is left out."
    if str(app.env.doc2path(docname, base=False)).endswith(".ipynb"):
        notebook = json.loads(source[0])
        for cell in notebook["cells"]:
            first = "".join(cell["source"]).partition("\n")[0]
            tag = {"#| hide": "hide-cell", "#| default_exp": "remove-cell"}.get(" ".join(first.split(" ")[:2]))
            if tag and cell["cell_type"] == "code":
                cell["metadata"].setdefault("tags", []).append(tag)
        source[0] = json.dumps(notebook)


def add_parameters(app, what, name, obj, options, lines):
    if what in ("function", "method", "class", "exception"):
        lines += described(obj)
    lines[:] = [escaped(line) for line in lines]


def add_index(app, error):
    if error is None:
        shutil.copyfile(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app):
    app.connect("source-read", add_contents)
    app.connect("source-read", fold_tests)
    app.connect("autodoc-process-docstring", add_parameters)
    app.connect("build-finished", add_index)
