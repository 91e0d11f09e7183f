# All tables and figures, on one machine or many: first the shared models, one job each, then one notebook per table or figure.
#
#   snakemake --profile profiles/local                              digits, on this machine
#   snakemake --profile profiles/local --config preset=paper        the paper's settings, one job at a time on a GPU
#   snakemake --profile profiles/slurm --config preset=paper        the same through Slurm
#
# All jobs write to one store (RESULTS/rows, RESULTS/checkpoints; RESULTS/jobs marks models that were tried). So jobs, the command
# `python -m maga.experiments` and notebooks use each other's results, and a job that is started again continues, as after a time limit.
# A run that fails is a line of the table with its error; the other runs go on. Where every run of a notebook fails, its job does, too, and
# says how they are tried again. A machine with several GPUs and no Slurm: `python -m maga.experiments all --processes N`.
# The options are the fields of maga.experiments.settings.Settings.

import shlex
from dataclasses import replace
from pathlib import Path

from maga.experiments.report import experiment, shared_trainings, together
from maga.experiments.settings import Settings, checked_selection, fitting, has_selected, settings_from

NOTEBOOKS = {p.stem: str(p) for p in Path("nbs/experiments").rglob("*.ipynb")}

OPTIONS = Settings().texts()  # every setting with its default, as text
unknown = sorted(set(config) - set(OPTIONS) - {"only"})
if unknown:
    raise WorkflowError(f"There is no option {unknown[0]!r}; there are {', '.join(OPTIONS)}, only.")
SETTINGS = settings_from(**OPTIONS | {k: "" if v is None else str(v) for k, v in config.items() if k in OPTIONS})  # None: written as `original=`
RESULTS = str(SETTINGS.results_folder)
CELLS = {n: experiment(n).cells(SETTINGS) for n in (str(config["only"]).split(",") if "only" in config else together())}
READ = {n: experiment(n).reads(SETTINGS) for n in CELLS}
checked_selection(SETTINGS, *([cell for some in cells.values() for cell in some] for cells in (CELLS, READ)))  # a wrong name is said before any job
NAMES = [n for n, cells in CELLS.items() if has_selected(cells, SETTINGS)]
LARGE = SETTINGS.size.gpu  # of the paper's size; a preset for a CPU needs less memory
GPUS = 1 if LARGE and SETTINGS.device != "cpu" else 0
ON_GPU = replace(SETTINGS, device="cuda") if SETTINGS.device == "auto" else SETTINGS  # a job that holds a GPU fails where torch sees none

FLAGS = (ON_GPU if GPUS else SETTINGS).options().replace("{", "{{").replace("}", "}}")


def models_of(name):
    "Markers of the shared models that a table or figure needs. A model whose training failed has one too; the table gives the reason."
    return [] if SETTINGS.published else [f"{RESULTS}/jobs/{t.key}" for t in shared_trainings([name], SETTINGS)]


def gpus_of(name):
    "GPUs of a table's or figure's job: none where it has neither runs nor an original of its own, or is drawn from published rows."
    return GPUS if not SETTINGS.published and (CELLS[name] or experiment(name).originals(SETTINGS)) else 0


def parameters_of(name):
    "The notebook's parameters, without the names and changes that only other tables and figures have."
    placed = ON_GPU if gpus_of(name) else SETTINGS
    return " ".join(f"{k}={shlex.quote(v)}" for k, v in fitting(placed, CELLS[name], READ[name]).texts().items())


localrules:
    all,


rule all:
    input:
        expand(f"{RESULTS}/{{name}}/table.csv", name=NAMES),


rule model:
    output:
        touch(f"{RESULTS}/jobs/{{key,[0-9a-f]{{16}}}}"),
    retries: 2
    resources:
        gpu=GPUS,
        runtime=lambda w, attempt: 120 * attempt,  # minutes; a training that is cut off begins anew
        mem_mb=16000 if LARGE else 8000,
    threads: 1
    shell:
        "python -m maga.experiments all --checkpoint {wildcards.key} " + FLAGS + " || echo 'Training failed; the tables that need this model give the reason.'"


rule notebook:
    input:
        lambda w: models_of(w.name),
        notebook=lambda w: NOTEBOOKS[w.name],
    output:
        f"{RESULTS}/{{name,[a-z0-9_]+}}/table.csv",
    log:
        notebook=f"{RESULTS}/{{name}}/{{name}}.ipynb",
    retries: 2
    resources:
        gpu=lambda w: gpus_of(w.name),
        runtime=480,
        mem_mb=32000 if LARGE else 8000,
    threads: 1
    params:
        given=lambda w: parameters_of(w.name),
    shell:
        "python tools/execute.py {input.notebook:q} {log.notebook:q} {params.given}"
