"""`make gpu`: all that needs a GPU, the most important first. The same command continues; `results/gpu/gpu.log` says what is left.

A stage that fails does not stop the others; the command ends with 1. Only a GPU that breaks ends it: the same command is a new process.
A machine that takes small parcels gets data and checkpoints by `tools/pack.py`, in pieces of at most 60 MiB.
Options that are not listed here go to `python -m maga.experiments`, for example `make gpu ARGS="--processes 4 --seeds 0,1,2"`. A table that
has none of the networks, targets and methods that they name is left out.
"""

import argparse
import importlib.util
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from maga import benchmark
from maga.checks import MagaError
from maga.device import recovered
from maga.experiments import __main__ as command
from maga.experiments.report import cells_of, experiment, open_session, specs_of, together
from maga.experiments.runs import missing_of
from maga.experiments.session import Session
from maga.experiments.settings import Settings, fitting, has_selected
from maga.experiments.store import code_digest

ROOT = Path(__file__).resolve().parent.parent
FIRST = ("table1", "table6", "frontier")  # of the grid; the rest follows
INTERRUPTED = 130  # status of `python -m maga.experiments`


def run_tests(folder: Path, settings: Settings) -> bool | None:
    "The tests marked `cuda`; `None` on a machine without pytest, which goes on without them."
    if importlib.util.find_spec("pytest") is None:
        return None
    return subprocess.run([sys.executable, "-m", "pytest", "-m", "cuda", "tests"], cwd=ROOT).returncode == 0


def run_benchmark(folder: Path, settings: Settings) -> bool:
    return benchmark.main(["--device", settings.device, "--data-root", settings.data_root, "--out", str(folder / "benchmark")]) == 0


ONCE: dict[str, Callable[[Path, Settings], bool | None]] = {"tests": run_tests, "benchmark": run_benchmark}  # for each state of the code


def for_stage(name: str, settings: Settings) -> Settings:
    "The settings without the networks, targets, methods and changes that only other tables and figures have."
    return fitting(settings, experiment(name).cells(settings), experiment(name).reads(settings))


def with_runs(stages: Sequence[str], settings: Settings) -> list[str]:
    "The stages that have some of the networks, targets and methods that the settings name."
    return [n for n in stages if n in ONCE or has_selected(experiment(n).cells(settings), settings)]


def rows_left(name: str, settings: Settings, session: Session) -> tuple[int, int, int]:
    "How many rows of a table or figure are not there yet, how many failed with the present code, and how many there are."
    settings = for_stage(name, settings)
    specs = specs_of(cells_of(experiment(name), settings, session), settings, session)
    (left, whole), (without, _) = missing_of(specs, session), missing_of(specs, session, retry=True)
    return left, without - left, whole


def what_is_left(stages: Sequence[str], settings: Settings, folder: Path) -> list[str]:
    "A sentence for each stage that is not finished."
    session, said = open_session(settings), []
    for name in stages:
        if name in ONCE:
            without = ", pytest is not installed" if name == "tests" and importlib.util.find_spec("pytest") is None else ""
            said += [] if is_done(name, folder) else [f"{name}: not passed yet{without}"]
            continue
        try:
            left, failed, whole = rows_left(name, settings, session)
        except MagaError as e:
            said.append(f"{name}: {e}")
            continue
        said += [f"{name}: {left} of {whole} rows left"] if left else []
        said += [f"{name}: {failed} of {whole} rows failed; --retry tries them again"] if failed else []
    session.store.tidy()
    return said


def is_done(name: str, folder: Path) -> bool:
    mark = folder / f"{name}.done"
    return mark.exists() and mark.read_text() == code_digest()


def passed(name: str, settings: Settings, folder: Path, more: Sequence[str] = ()) -> bool:
    "Run a stage that is not done; whether it succeeded. `KeyboardInterrupt` where the time is over, `SystemExit` where the GPU is broken."
    try:
        if name not in ONCE:
            status = command.main([name, *shlex.split(for_stage(name, settings).options()), *more])
            if status == INTERRUPTED:
                raise KeyboardInterrupt
            return status == 0
        if not is_done(name, folder):
            ended = ONCE[name](folder, settings)
            if ended:
                (folder / f"{name}.done").write_text(code_digest())
            return ended is not False
        return True
    except Exception:
        traceback.print_exc()
    if not recovered(torch.device(settings.device)):
        raise SystemExit(f"{name} broke the GPU for this process; the same command goes on")
    return False


def main(arguments: Sequence[str]) -> int:
    "0 when nothing is left; 1 when something is, when rows failed, or where there is no GPU."
    usual = ["tests", *FIRST, "benchmark", *(n for n in together() if n not in FIRST)]  # rows stay when time is over, a benchmark begins anew
    p = argparse.ArgumentParser(prog="make gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=0.0, help="stop after so many, to be continued; 0: no limit")
    p.add_argument("--stages", default=",".join(usual), help="which, in this order")
    p.add_argument("--results", default="results/gpu", help="folder of the rows, tables and the log")
    p.add_argument("--preset", default="paper")
    a, more = p.parse_known_args(arguments)
    if not torch.cuda.is_available():
        print("There is no GPU on this machine, so nothing was run; `make gpu` is for one that has a GPU.", file=sys.stderr)
        return 1
    folder, stages = Path(a.results), a.stages.split(",")
    folder.mkdir(parents=True, exist_ok=True)
    given = command.parser().parse_args(["all", "--preset", a.preset, "--device", "cuda", "--results", a.results, *more])
    settings, start = command.given_settings(given), time.monotonic()
    if not settings.device.startswith("cuda"):
        print(f"`make gpu` is for a GPU: --device cuda or cuda:N, not {settings.device}.", file=sys.stderr)
        return 1
    stages = with_runs(stages, settings)
    more = [f"--processes={given.processes}", *(["--retry"] if given.retry else [])]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60 * a.minutes)
    device, said, broken = torch.cuda.get_device_name(settings.device), list[str](), False
    try:
        for name in stages:
            said += [] if passed(name, settings, folder, more) else [f"{name}: ended with an error"]
    except KeyboardInterrupt:
        said.append("interrupted")
    except SystemExit as e:
        said, broken = [*said, str(e)], True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    said += [] if broken else what_is_left(stages, settings, folder)
    lines = [f"{time.strftime('%Y-%m-%d %H:%M')}, {device}, {(time.monotonic() - start) / 60:.1f} minutes", *(said or ["nothing is left"])]
    with (folder / "gpu.log").open("a") as log:
        print(*lines, sep="\n", file=log)
    print(*lines, sep="\n")
    return int(bool(said))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
