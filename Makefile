# Every target but gpu and clean sets up what it needs: a virtual environment in .venv, made once and again when the requirements change.
# Modules are compiled when they are first imported (most of what is installed never is), and stay compiled: dozens of processes import torch.
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
DRAWN := $(wildcard nbs/experiments/paper/*.ipynb) $(addprefix nbs/experiments/studies/,beyond.ipynb expected.ipynb frontier.ipynb tuning.ipynb)
# data sets: data/, or a folder that several clones share
DATA := $(firstword $(wildcard data ../shared/data) data)
export MAGA_DATA ?= $(abspath $(DATA))
export PATH := $(BIN):$(PATH)
export JUPYTER_PLATFORM_DIRS := 1
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo reproduce slurm test check style types notebooks pytest browser simcuda gpu install docs lab readme export refresh published clean

demo: $(READY)  ## the whole method on handwritten digits; results/demo
	mkdir -p results/demo
	OMP_NUM_THREADS=1 papermill --no-progress-bar nbs/experiments/studies/demo.ipynb results/demo/demo.ipynb -k python3 -p results results $(ARGS)
	@echo; cat results/demo/table.csv; echo; echo "Executed notebook, table and pictures: results/demo"

reproduce: $(READY)  ## every table and figure on this machine; ARGS="--config preset=paper" for the paper's settings
	snakemake --profile profiles/local $(ARGS)

slurm: $(READY)  ## the same through Slurm: a cluster of one node on a Debian machine, as root; ARGS="results/slurm only=table1" for a part
	tools/slurm_one_node.sh $(ARGS)

test: $(READY)  ## everything that CI runs but the site; networks that many notebooks ask for are trained once
	@export MAGA_BENCH=$$(mktemp -d); trap 'rm -rf "$$MAGA_BENCH"' EXIT; \
	$(MAKE) --no-print-directory --jobs --output-sync=target check install notebooks && $(MAKE) --no-print-directory pytest

check: style types  ## exports and README fresh, imports, lengths, references, style, types

style: $(READY)
	python tools/check.py
	python tools/readme.py --check
	ruff check .

types: $(READY)
	mypy

notebooks: $(READY)  ## nbdev_test on every notebook outside of experiments
	OMP_NUM_THREADS=1 timeout 900 nbdev_test --n_workers 2 --timing

pytest: $(READY)
	OMP_NUM_THREADS=1 pytest -n 2 --dist worksteal --durations=12

browser: $(VENV)/.browser  ## notebooks opened and run in JupyterLab by a real browser; on Debian it is installed when missing, as root
	OMP_NUM_THREADS=1 pytest -m browser tests/test_lab.py

simcuda: $(READY)  ## the package on a pretended GPU: before releases, and when training or devices change; needs a C++ compiler
	OMP_NUM_THREADS=1 python tools/simcuda/run.py $(ARGS)

gpu:  ## all that needs a GPU, by one command that continues: tests, the paper's grid, the benchmark; sets up no environment of its own
	@PYTHONPATH=. $(PYTHON) tools/gpu.py $(ARGS)

install: $(READY)  ## a plain install, imported from another folder without the development tools
	python tools/install_check.py

docs: $(VENV)/.docs  ## the site in _site/html: front page, notebooks with their outputs, reference; a warning is an error
	python -m sphinx -W --keep-going -q -c docs . _site/html

lab: $(READY)  ## read and edit the notebooks
	jupyter lab nbs

export: $(READY)  ## notebooks -> maga/
	nbdev_export && nbdev_clean

refresh: $(READY)  ## run notebooks from top to bottom and keep their outputs: make refresh NB=nbs/304_maga.ipynb
	python tools/refresh.py $(NB)
	nbdev_clean

published: $(READY)  ## draw the paper's notebooks, beyond, the frontier, the search, the expected numbers and the claims from the published rows
	python tools/refresh.py --set preset=laptop --set results=published --at-once 2 $(DRAWN)
	cp results/published/laptop/frontier/classes.png nbs/images/frontier.png
	python tools/refresh.py nbs/516_claims.ipynb
	nbdev_clean

readme: $(READY)  ## nbs/index.ipynb -> README.md
	python tools/readme.py

$(READY): settings.ini setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[dev]"
	touch $(READY)

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[docs]"
	touch $@

$(VENV)/.browser: $(READY)
	command -v chromium >/dev/null && command -v chromedriver >/dev/null || { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium chromium-driver; }
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[browser]"
	touch $@

clean:  ## what is made again by itself; results/ stays, it may be days of work
	rm -rf $(VENV) build _site docs/api *.egg-info
