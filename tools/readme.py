"""Renders README.md from nbs/index.ipynb: prose, code, text outputs. With --check: fails if README.md is not fresh."""

import json
import posixpath
import re
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
FENCED = re.compile(r"(^```.*?^```)", re.S | re.M)
RELATIVE = re.compile(r'(\]\(|src=")(?!https?:|mailto:|#)([^)"\s]+)')


def from_root(prose: str) -> str:
    "Markdown whose relative links begin at the repository's root instead of nbs/; code blocks stay as they are."
    parts = FENCED.split(prose)
    moved = [RELATIVE.sub(lambda m: m[1] + posixpath.normpath(posixpath.join("nbs", m[2])), p) for p in parts[::2]]
    return "".join(a + b for a, b in zip(moved, [*parts[1::2], ""], strict=True))


def rendered() -> str:
    "README.md's text."
    parts = ["<!-- Made from nbs/index.ipynb by tools/readme.py: edit the notebook. -->"]
    for cell in json.loads((root / "nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(from_root(source))
        elif not source.startswith("#| hide"):
            parts.append(f"```python\n{source}\n```")
            for output in cell["outputs"]:
                text = "".join(output.get("text", output.get("data", {}).get("text/plain", []))).strip()
                if text:
                    parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    readme = root / "README.md"
    if "--check" not in sys.argv:
        readme.write_text(rendered(), encoding="utf-8")
    elif readme.read_text(encoding="utf-8") != rendered():
        sys.exit("README.md is not what nbs/index.ipynb says: run `make readme` and commit the result.")
