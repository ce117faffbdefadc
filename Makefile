SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup run doctor test test-kernel bench kill fuzz mutants kernel push output submit download sync clean

PYTHON3 ?= python3
VENV ?= .venv
DATA ?= phantom
RUN ?= $(if $(filter phantom,$(DATA)),phantom,$(error RUN=name is required with DATA=))
PRESET ?= quick
NOTEBOOKS := 01_eda 02_transforms 03_train 04_postprocess_submit
PAPERMILL = $(VENV)/bin/papermill --no-progress-bar --log-level ERROR --stdout-file /dev/stdout
PARAMETERS = -p preset $(PRESET) -r data_root "$(DATA)" -r run "$(RUN)" $(ARGS)

# An environment that several clones share never imports the other clone's code.
export PYTHONPATH := $(CURDIR)
# Threads of PyTorch that wait for each other give their core away sooner. On 2 cores a step of `quick` takes 125 ms instead of 119 (medians of
# three), but two runs side by side take 0.4 s a step instead of more than 2.
export GOMP_SPINCOUNT ?= 10000

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

setup: $(VENV)/.ctseg ## make the environment in VENV (default .venv), or complete one that exists

$(VENV)/.ctseg: pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON3) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	touch $@

run: setup ## all four notebooks on DATA (default the phantom) into runs/RUN; PRESET=quick|baseline|strong ARGS="-p name value"
	mkdir -p "runs/$(RUN)"
	set -o pipefail; for name in $(NOTEBOOKS); do \
	    $(PAPERMILL) notebooks/$$name.ipynb "runs/$(RUN)/running.ipynb" $(PARAMETERS) | cat || exit 1; \
	    mv "runs/$(RUN)/running.ipynb" "runs/$(RUN)/$$name.ipynb"; done
	$(VENV)/bin/python -m ctseg.report "runs/$(RUN)"

doctor: setup ## what is wrong with DATA, and what to do about it
	$(VENV)/bin/python -m ctseg.check "$(DATA)"

test: setup ## the test suite
	$(VENV)/bin/python -m pytest

test-kernel: setup $(VENV)-kaggle/.ctseg ## the kernel as Kaggle's server receives it, run by Kaggle's versions of papermill and Jupyter
	$(VENV)/bin/python -m pytest tests/run_kernel.py --python "$(abspath $(VENV)-kaggle)/bin/python"

# Kaggle's versions, over the PyTorch of VENV, without ctseg.
$(VENV)-kaggle/.ctseg: tests/kaggle_image.txt | setup
	$(VENV)/bin/python -m venv $(VENV)-kaggle
	$(VENV)-kaggle/bin/python -m pip install --quiet --disable-pip-version-check -r tests/kaggle_image.txt
	$(VENV)/bin/python -c "import site; print(site.getsitepackages()[0])" > "$$($(VENV)-kaggle/bin/python -c "import site; print(site.getsitepackages()[0])")/pytorch.pth"
	touch $@

bench: setup ## figures of this machine: steps, images, Dice against training seconds; DATA=, PRESET=, ARGS="-p name value --minutes 1 4"
	$(VENV)/bin/python tests/bench.py --data "$(DATA)" --preset $(PRESET) $(ARGS)

kill: setup ## runs killed at 34 random moments end as if they never were; full disks; ten minutes
	$(VENV)/bin/python -m pytest -s tests/run_kill.py

fuzz: setup ## 100,000 random masks through the run-length code and back, and broken codes; a minute
	$(VENV)/bin/python -m pytest tests/run_fuzz.py

mutants: setup ## the fast tests notice each of some fifty faults seeded into ctseg; ten minutes
	$(VENV)/bin/python tests/mutants.py

kernel: setup ## one notebook for Kaggle in kaggle_kernel/; ARGS="-p name value -f best.yaml --title … --no-internet --dataset owner/slug"
	$(VENV)/bin/python kaggle_kernel/build.py $(ARGS)

push: kernel ## build the kernel and push it to Kaggle
	$(VENV)/bin/python kaggle_kernel/client.py push

output: setup ## fetch what the finished kernel left, into runs/kaggle; checked against DATA
	$(VENV)/bin/python kaggle_kernel/client.py output --data "$(filter-out phantom,$(DATA))"

submit: setup ## submit runs/RUN/submission.csv, checked against DATA
	$(VENV)/bin/python kaggle_kernel/client.py submit --run "$(RUN)" --data "$(filter-out phantom,$(DATA))"

download: setup ## the contest's data into data/
	$(VENV)/bin/python kaggle_kernel/client.py download

sync: setup ## bring the .ipynb and .py of each pair in step, the newer one wins
	$(VENV)/bin/jupytext --sync notebooks/*.py

clean: ## remove caches and builds; never data, runs or notebooks
	rm -rf build *.egg-info .pytest_cache
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
