"""Renders README.md from nbs/index.ipynb: prose, code, text outputs. With --check: fails if README.md is not fresh."""

import json
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent


def rendered() -> str:
    parts = ["<!-- Made from nbs/index.ipynb by tools/readme.py: edit the notebook. -->"]
    for cell in json.loads((root / "nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(source.replace("](images/", "](nbs/images/"))
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
