"""What a newcomer runs first: the program of the front page, and the demonstration."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}


def test_the_program_of_the_front_page(tmp_path):
    "At most 15 lines; run from elsewhere it forgets the digit and keeps the rest."
    program = re.search(r"```python\n(import torch.*?)```", (root / "README.md").read_text(), re.S).group(1)
    assert len([line for line in program.splitlines() if line.strip()]) <= 15
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT, check=True)
    before, after = (dict(re.findall(r"(\w+) ([\d.]+)", line)) for line in done.stdout.strip().splitlines())
    assert float(before["A_f"]) > 80 and float(after["A_f"]) <= 5
    assert float(after["A_r"]) >= float(before["A_r"]) - 2


def demo(results):
    (results / "demo").mkdir(parents=True)
    notebook = root / "nbs" / "experiments" / "studies" / "demo.ipynb"
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(notebook), str(results / "demo" / "demo.ipynb"), "-k", "python3"]
    process = subprocess.Popen(
        [*command, "-p", "results", str(results), "-p", "device", "cpu"], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return process


def test_the_demonstration_twice(tmp_path):
    "The same table, bit for bit, times apart; the retrain knows nothing of the digit and MaGA neither."
    processes = [demo(tmp_path / name) for name in ("one", "two")]
    assert [p.wait() for p in processes] == [0, 0]
    tables = [list(csv.DictReader((tmp_path / name / "demo" / "table.csv").read_text().splitlines())) for name in ("one", "two")]
    assert list(tables[0][0]) == ["method", "A_r", "A_f", "MIA", "TV", "seconds"]
    one, two = ([{k: v for k, v in row.items() if k != "seconds"} for row in table] for table in tables)
    assert one == two
    rows = {row["method"]: row for row in tables[0]}
    assert list(rows) == ["original", "retrain", "maga"]
    assert float(rows["retrain"]["A_f"]) == 0 and float(rows["maga"]["A_f"]) <= 5
    assert float(rows["maga"]["A_r"]) >= float(rows["original"]["A_r"]) - 2
    assert {p.suffix for p in (tmp_path / "one" / "demo").iterdir()} >= {".png", ".csv", ".ipynb", ".safetensors"}
