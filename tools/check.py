"""Checks that need no test runner: exports are fresh, notebooks are whole, imports run one way, nothing is too long, every reference resolves.

A check takes the repository's folder and returns the problems it found, one sentence each. nbdev's own commands return 0 when
they find nothing, so the notebooks are counted here.
"""

import ast
import functools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

ORDER = ("ground", "measures", "judges", "methods", "experiments", "benchmark", "own")  # an import goes from right to left
FOLDERS = {0: "", 1: "measures", 2: "judges", 3: "methods", 5: "experiments", 6: "", 7: "own"}  # hundred -> folder of maga; 4: studies without a module
MODULE_LINES, CELL_LINES, LINE_CHARACTERS = 400, 60, 150


# Reading


@functools.cache
def cells_of(notebook: Path) -> list[dict[str, Any]]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def source_of(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def chapters(root: Path) -> list[Path]:
    "The notebooks that export or study one module: `nbs/*.ipynb` without the front page."
    return sorted(p for p in (root / "nbs").glob("*.ipynb") if p.stem != "index")


def pages(root: Path) -> list[Path]:
    "Every notebook: the front page, chapters and experiments."
    return [p for p in [root / "nbs/index.ipynb", *chapters(root), *experiments(root)] if p.exists()]


def experiments(root: Path) -> list[Path]:
    return sorted((root / "nbs/experiments").rglob("*.ipynb"))


def modules(root: Path) -> dict[str, Path]:
    "Dotted name -> file, for modules and packages; without nbdev's index."
    files = [p for p in sorted((root / "maga").rglob("*.py")) if p.stem != "_modidx"]
    return {".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


def exported_module(notebook: Path) -> str | None:
    "What `#| default_exp` names: `measures.contract`; `None` for a study."
    found = (re.match(r"#\| default_exp (\S+)", source_of(c)) for c in cells_of(notebook))
    return next((m[1] for m in found if m), None)


def parameters_cell(notebook: Path) -> str | None:
    return next((source_of(c) for c in cells_of(notebook) if "parameters" in c["metadata"].get("tags", [])), None)


# Exports and notebooks


def copied(root: Path, folder: Path) -> Path:
    "The folder, with a copy of every file that git knows or would add."
    names = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in names:
        if name and (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, folder / name)
    return folder


def exports_are_fresh(root: Path) -> list[str]:
    "Exporting and cleaning a copy change nothing; in place, others would read modules that are half written."
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(root, Path(folder))
        for command in ("nbdev_export", "nbdev_clean"):
            subprocess.run([command], cwd=copy, check=True)
        pairs = [(p, root / p.relative_to(copy)) for p in sorted(copy.rglob("*")) if p.is_file()]
        changed = [mine.relative_to(root) for made, mine in pairs if not mine.is_file() or made.read_bytes() != mine.read_bytes()]
    return [f"`make export` changes {name}: run it and commit the result." for name in changed]


MACHINE = re.compile(r"(?<![\w.<:/])/(?:home|Users|work|root|tmp|mnt)/[\w./-]+")


def shown_by(notebook: Path) -> str:
    "The text of a notebook's outputs, pictures left out."
    outputs = [o for c in cells_of(notebook) for o in c.get("outputs", [])]
    texts = [o.get("text", ()) for o in outputs] + [v for o in outputs for kind, v in o.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join("".join(t) for t in texts)


def notebooks_are_whole(root: Path) -> list[str]:
    "Every module has its notebook, every experiment its parameters, cells have ids of their own, and no output is an error or names a folder of the machine."
    exported = {f"maga.{m}" for n in chapters(root) if (m := exported_module(n))}
    written = {n for n, p in modules(root).items() if p.name != "__init__.py"}
    problems = [f"{n} has no notebook, or its notebook no module." for n in sorted(exported ^ written)]
    for notebook in pages(root):
        if any(o["output_type"] == "error" for c in cells_of(notebook) for o in c.get("outputs", [])):
            problems.append(f"{notebook.name} holds a cell that ended in an error: run it again.")
        ids = Counter(c["id"] for c in cells_of(notebook) if "id" in c)
        problems += [f"{notebook.name} has {n} cells with the id {i}: give all but one another." for i, n in ids.items() if n > 1]
        problems += [f"{notebook.name} shows {path}, a path of one machine." for path in sorted({*MACHINE.findall(shown_by(notebook))})]
    for notebook in experiments(root):
        if parameters_cell(notebook) is None:
            problems.append(f"{notebook.name} has no cell tagged `parameters`: papermill would ignore what it is given.")
        if any("injected-parameters" in c["metadata"].get("tags", []) for c in cells_of(notebook)):
            problems.append(f"{notebook.name} keeps injected parameters, which override its own: delete that cell; `tools/refresh.py --set` leaves none.")
    print(f"{len(chapters(root))} notebooks for nbdev_test, {len(experiments(root))} experiments, {len(written)} modules.")
    return problems


# Imports


@dataclass(frozen=True)
class Import:
    "One module of maga imports another."

    importer: str
    imported: str
    in_function: bool


def imports_of(name: str, path: Path, known: set[str]) -> Iterator[Import]:
    "What a module imports from maga, at its top and within functions."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    within = {id(n) for f in functions for n in ast.walk(f)}
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *(node.module or "").split(".")]).strip(".")
            wanted = [inner if (inner := f"{base}.{alias.name}") in known else base for alias in node.names]
        else:
            continue
        for imported in sorted(set(wanted) & known):
            yield Import(name, imported, id(node) in within)


def all_imports(root: Path) -> list[Import]:
    "Every import within maga. The package's own `__init__` is a lazy door to all folders: what its functions import is not counted."
    found = modules(root)
    every = (i for name, path in found.items() for i in imports_of(name, path, set(found)))
    return [i for i in every if not (i.importer == "maga" and i.in_function)]


def folder_of(module: str) -> str:
    "Which of ORDER a module belongs to."
    part = module.split(".")[1:2]
    return part[0] if part and part[0] in ORDER else "ground"


def circle(arrows: set[tuple[str, str]]) -> list[str]:
    "The nodes of one circle, from the importer to what it imports and back; [] if there is none."
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for importer, imported in arrows:
        sorter.add(importer, imported)
    try:
        sorter.prepare()
    except CycleError as e:
        return e.args[1][::-1]
    return []


def imports_run_one_way(root: Path) -> list[str]:
    "No circle of modules, and a folder imports from folders to its left in ORDER only."
    found = all_imports(root)
    arrows = {(i.importer, i.imported) for i in found}
    folders = {(folder_of(a), folder_of(b)) for a, b in arrows} - {(f, f) for f in ORDER}
    print(
        f"{len(arrows)} imports between {len(modules(root))} modules and packages, {sum(i.in_function for i in found)} of them within functions; "
        f"{len(folders)} between folders."
    )
    ring = circle(arrows)
    problems = [f"Imports run in a circle: {' → '.join(ring)}."] if ring else []
    uphill = sorted((a, b) for a, b in arrows if ORDER.index(folder_of(b)) > ORDER.index(folder_of(a)))
    return problems + [f"{a} imports {b}, but {folder_of(a)} comes before {folder_of(b)}." for a, b in uphill]


# Lengths


def is_one_class(source: str) -> bool:
    return [type(n) for n in ast.parse(source).body] == [ast.ClassDef]


def nothing_is_too_long(root: Path) -> list[str]:
    "Modules, export cells (a single class apart) and lines of exported modules keep to their limits."
    problems, longest = [], 0
    for path in modules(root).values():
        lines = path.read_text(encoding="utf-8").splitlines()
        longest = max(longest, len(lines))
        name = path.relative_to(root)
        if len(lines) > MODULE_LINES:
            problems.append(f"{name} has {len(lines)} lines, more than {MODULE_LINES}.")
        problems += [f"{name}:{i} has {len(x)} characters, more than {LINE_CHARACTERS}." for i, x in enumerate(lines, 1) if len(x) > LINE_CHARACTERS]
    for notebook in chapters(root):
        for cell in cells_of(notebook):
            first, _, code = source_of(cell).partition("\n")
            if first.startswith("#| export") and (n := len(code.splitlines())) > CELL_LINES and not is_one_class(code):
                problems.append(f"{notebook.name} has an export cell of {n} lines, more than {CELL_LINES}: {code.splitlines()[0]}")
    print(f"The longest module has {longest} lines.")
    return problems


# References

LINK = re.compile(r'(?:\]\(|(?:src|href)="|^ {0,3}\[[^\]^][^\]]*\]: *)(?!https?:|mailto:|attachment:|data:)([^)"\s]+)', re.M)
NAMED = re.compile(r"`(nbs/[^`\s…*]+|\d{3}_\w+(?:\.ipynb)?)`")
OLD = re.compile(r"\bnotebooks? `?\d{1,2}[a-z]?\b|(?<![\w.#:])(?:0\d|1[0-2])[a-l]\b|`\d\d[a-z]?_\w+")


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)


def without_code(text: str) -> str:
    "Markdown without fenced blocks and code spans."
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", without_fences(text))


def anchors_of(page: Path) -> set[str]:
    "The anchors of a page's headings: lower case, a hyphen for a space, no other signs."
    text = "\n".join(source_of(c) for c in cells_of(page) if c["cell_type"] == "markdown") if page.suffix == ".ipynb" else page.read_text(encoding="utf-8")
    titles = (re.sub(r"\]\([^)]*\)", "", t) for t in re.findall(r"^#+ +(.+?) *$", without_fences(text), re.M))
    return {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}


def leads(page: Path, link: str) -> bool:
    "Whether a link on a page leads to a file, and to a heading where it names one."
    file, _, anchor = link.partition("#")
    target = page.parent / file if file else page
    return target.exists() and (not anchor or target.suffix not in (".ipynb", ".md") or anchor in anchors_of(target))


def problems_of_text(page: Path, text: str, root: Path, markdown: bool) -> list[str]:
    "Links and names in a page's text that lead nowhere."
    where = page.relative_to(root)
    links = LINK.findall(without_code(text)) if markdown else []
    problems = [f"{where}: the link {link} leads nowhere." for link in links if not leads(page, link)]
    for name in NAMED.findall(text):
        place = root / name if name.startswith("nbs/") else root / "nbs" / (name.removesuffix(".ipynb") + ".ipynb")
        if not place.exists():
            problems.append(f"{where}: there is no {name}.")
    return problems + [f"{where}: {old.strip('`')!r} is the number of an earlier layout." for old in OLD.findall(text)]


def references_resolve(root: Path) -> list[str]:
    "Every link, its heading and every named notebook exist; no number of an earlier layout is left."
    problems = []
    for notebook in pages(root):
        for cell in cells_of(notebook):
            problems += problems_of_text(notebook, source_of(cell), root, cell["cell_type"] == "markdown")
    for page in sorted(root.glob("*.md")):
        problems += problems_of_text(page, page.read_text(encoding="utf-8"), root, markdown=True)
    return problems


# Numbers and parameters


def numbers_fit(root: Path) -> list[str]:
    "A notebook's hundred is its module's folder, its name the module's last name, and numbers have no gaps."
    problems, numbers = [], {}
    for notebook in chapters(root):
        number, _, name = notebook.stem.partition("_")
        if not re.fullmatch(r"\d{3}", number):
            problems.append(f"{notebook.name}: a notebook is named NNN_name.")
            continue
        numbers.setdefault(int(number) // 100, []).append(int(number) % 100)
        if module := exported_module(notebook):
            folder, _, last = module.rpartition(".")
            if folder != FOLDERS.get(int(number) // 100):
                problems.append(f"{notebook.name} exports maga.{module}, which belongs to another hundred.")
            if name != {"__main__": "command"}.get(last, last):
                problems.append(f"{notebook.name} exports {last}: file and module have the same name (`command` for `__main__`).")
    for hundred, found in numbers.items():
        if sorted(found) != list(range(len(found))):
            problems.append(f"The numbers {hundred}00 … have a gap or a number twice: {', '.join(f'{hundred}{n:02d}' for n in sorted(found))}.")
    return problems


def parameters_of(notebook: Path) -> list[str]:
    "The names that a notebook's parameters cell assigns."
    assigned = (n for n in ast.parse(parameters_cell(notebook) or "").body if isinstance(n, ast.Assign | ast.AnnAssign))
    return [t.id for n in assigned for t in (n.targets if isinstance(n, ast.Assign) else [n.target]) if isinstance(t, ast.Name)]


def differing_parameters(root: Path, wanted: set[str]) -> list[str]:
    "Paper notebooks whose parameters are not the wanted ones."
    problems = []
    for notebook in sorted((root / "nbs/experiments/paper").glob("*.ipynb")):
        missing, strange = sorted(wanted - set(parameters_of(notebook))), sorted(set(parameters_of(notebook)) - wanted)
        said = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(strange)}, which the settings do not have"] * bool(strange)
        if said:
            problems.append(f"{notebook.name} {' and '.join(said)}.")
    return problems


def parameters_are_the_settings(root: Path) -> list[str]:
    "Every paper notebook takes every setting."
    sys.path.insert(0, str(root))
    from maga.experiments.settings import Settings

    return differing_parameters(root, {f.name for f in fields(Settings)})


CHECKS = (
    exports_are_fresh,
    notebooks_are_whole,
    imports_run_one_way,
    nothing_is_too_long,
    references_resolve,
    numbers_fit,
    parameters_are_the_settings,
)

if __name__ == "__main__":
    here = Path(__file__).resolve().parent.parent
    found = [problem for check in CHECKS for problem in check(here)]
    sys.exit("\n".join(found) if found else 0)
