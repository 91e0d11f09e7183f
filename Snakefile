# All tables and figures, on one machine or many. Shared models come first, one job each; then a notebook a table or figure.
#
#   snakemake --profile profiles/local                              digits, on this machine
#   snakemake --profile profiles/local --config preset=paper        the paper's settings, as many jobs as there are GPUs
#   snakemake --profile profiles/slurm --config preset=paper        the same through Slurm
#
# Every job keeps what it computes in one store (RESULTS/rows, RESULTS/checkpoints; RESULTS/jobs marks models that were tried), so jobs, the command
# `python -m maga.experiments` and notebooks take up each other's work, and a job that is started again goes on.
# A run that failed is a line with its error in the table: it does not stop the rest.

from pathlib import Path

from maga.experiments.__main__ import shared_trainings
from maga.experiments.catalogue import EXPERIMENTS
from maga.experiments.settings import settings_of

NOTEBOOKS = {p.stem: str(p) for p in Path("nbs/experiments").rglob("*.ipynb")}

OPTIONS = {"preset": "smoke", "device": "auto", "results": "results", "data_root": "data", "seeds": "", "judge": "features", "backbone": "", "target": "", "methods": ""}
unknown = sorted(set(config) - set(OPTIONS) - {"only"})
if unknown:
    raise WorkflowError(f"There is no option {unknown[0]!r}; there are {', '.join(OPTIONS)}, only.")
GIVEN = OPTIONS | {k: str(v) for k, v in config.items() if k in OPTIONS}
SETTINGS = settings_of(**GIVEN)
RESULTS = GIVEN["results"]
NAMES = str(config["only"]).split(",") if "only" in config else list(EXPERIMENTS)
GPUS = 0 if GIVEN["device"] == "cpu" or GIVEN["preset"] == "smoke" else 1

FLAGS = " ".join(f"--{k.replace('_', '-')} {v!r}" for k, v in GIVEN.items() if v)
PARAMETERS = " ".join(f"{k}={v!r}" for k, v in GIVEN.items())


def models_of(name):
    "Markers of the shared models that a table or figure needs. A model that could not be trained has one too: the table will say why."
    return [f"{RESULTS}/jobs/{t.key}" for t in shared_trainings([name], SETTINGS)]


localrules:
    all,


rule all:
    input:
        expand(f"{RESULTS}/{{name}}/table.csv", name=NAMES),


rule model:
    output:
        touch(f"{RESULTS}/jobs/{{key,[0-9a-f]{{16}}}}"),
    resources:
        gpu=GPUS,
        runtime=120,
        mem_mb=16000,
    threads: 1
    shell:
        "python -m maga.experiments all --checkpoint {wildcards.key} " + FLAGS + " || echo 'The tables that need this model will say so.'"


rule notebook:
    input:
        lambda w: models_of(w.name),
        notebook=lambda w: NOTEBOOKS[w.name],
    output:
        f"{RESULTS}/{{name,[a-z0-9]+}}/table.csv",
    log:
        notebook=f"{RESULTS}/{{name}}/{{name}}.ipynb",
    resources:
        gpu=GPUS,
        runtime=480,
        mem_mb=32000,
    threads: 1
    shell:
        "python tools/execute.py {input.notebook} {log.notebook} " + PARAMETERS
