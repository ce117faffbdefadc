SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup run lab compare average sweep check predict download kernel push output submit test lint test-kernel test-browser kill fuzz mutants bench sync in-sync clean

PYTHON3 ?= python3
VENV ?= .venv
# A file of parameters, or one of them, may name the data instead.
DATA ?= $(if $(filter -f% --file% data_root,$(ARGS))$(GRID),,phantom)
RUN ?= $(if $(filter phantom,$(DATA)),phantom,$(error RUN=name is required with DATA= or a file in ARGS))
PYTHON = $(VENV)/bin/python
# Without PRESET the one of a file in ARGS counts, else the notebooks' own.
PARAMETERS = $(if $(PRESET),-p preset $(PRESET)) $(if $(DATA),-r data_root "$(DATA)") -r run "$(RUN)" $(ARGS)
INSTALL = -m pip install --quiet --disable-pip-version-check
COMMA := ,
SPACE := $(subst ,, )

# An environment that several clones share never imports the other clone's code.
export PYTHONPATH := $(CURDIR)
# PyTorch's waiting threads release their core sooner. On 2 cores a step of `quick` takes 125 ms instead of 119
# (medians of three), but two runs side by side take 0.4 s per step instead of more than 2.
export GOMP_SPINCOUNT ?= 10000

help: # this list
	@awk -F ':.*## ' '/^##@ / {print "\n" substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Every day

setup: $(VENV)/.ctseg ## make the environment in VENV (default .venv), or complete one that exists
	@test ! -e .git || git config filter.ctseg-notebooks.clean '"$(abspath $(VENV))/bin/python" -m ctseg.pairs strip'

$(VENV)/.ctseg: pyproject.toml
	test -x $(PYTHON) || $(PYTHON3) -m venv $(VENV)
	$(PYTHON) $(INSTALL) --editable ".[test]"
	touch $@

run: setup ## all notebooks on DATA (or the phantom) into runs/RUN; PRESET=quick|strong|gpu|baseline ARGS="-p lr 0.001"
	$(PYTHON) -m ctseg.execute $(PARAMETERS)
	@$(PYTHON) -m ctseg.report "runs/$(RUN)"

lab: setup $(VENV)/.ctseg-lab ## the notebooks in JupyterLab, in the browser
	$(VENV)/bin/jupyter lab --LabApp.default_url=/lab/tree/notebooks/01_eda.ipynb $(ARGS)

$(VENV)/.ctseg-lab: pyproject.toml | setup
	$(PYTHON) $(INSTALL) --editable ".[lab]"
	touch $@

compare: setup ## runs on the same data, ranked, and where they differ most: RUNS="a b"
	$(if $(RUNS),,$(error RUNS="a b" is required))
	@$(PYTHON) -m ctseg.compare $(RUNS)

average: setup ## notebook 04 on the mean of trained runs, RUNS="a b", into runs/RUN
	$(if $(RUNS),,$(error RUNS="a b" is required))$(if $(filter file,$(origin RUN)),$(error RUN=name is required))
	$(PYTHON) -m ctseg.execute --only 04_postprocess_submit -r run "$(RUN)" -r runs "$(subst $(SPACE),$(COMMA),$(strip $(RUNS)))" \
	    $(if $(filter file,$(origin DATA)),,-r data_root "$(DATA)") $(ARGS)
	@$(PYTHON) -m ctseg.report "runs/$(RUN)"

sweep: setup ## a run for each combination of the lists in GRID=grid.yaml, ranked; SWEEP= JOBS= SCHEDULER= or ARGS="-p lr 1e-3,5e-4"
	@$(PYTHON) -m ctseg.sweep $(if $(GRID),"$(GRID)") $(if $(DATA),-r data_root "$(DATA)") $(if $(SWEEP),--sweep "$(SWEEP)") \
	    $(if $(JOBS),--jobs $(JOBS)) $(if $(SCHEDULER),--scheduler "$(SCHEDULER)") $(ARGS)

check: setup ## what is wrong with DATA, and what to do about it; ARGS as for run
	$(PYTHON) -m ctseg.check "$(DATA)" $(ARGS)

predict: setup ## masks of all images in IMAGES by the run RUN, into runs/RUN/predictions/; needs no training data
	$(if $(IMAGES),,$(error IMAGES=folder is required))$(if $(filter file,$(origin RUN)),$(error RUN=name is required))
	@test -d "runs/$(RUN)" || { echo "no run runs/$(RUN); there are: $$(ls runs 2>/dev/null | xargs)"; exit 1; }
	$(PYTHON) -m ctseg.execute --only 04_postprocess_submit -r run "$(RUN)" -r predict_folder "$(IMAGES)" $(ARGS)

clean: ## remove caches and builds, never data or notebooks; with RUN=name that run, and nothing else
ifeq ($(origin RUN),command line)
	@run='$(subst ','\'',$(RUN))'; case "/$$run/" in *//*|*/./*|*/../*) false;; *) test -f "runs/$$run/config.json";; esac \
	    && rm -rf "runs/$$run" || { echo "no run runs/$$run; there are: $$(ls runs 2>/dev/null | xargs)"; exit 1; }
else
	rm -rf build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
endif

##@ Kaggle

download: setup ## the contest's data into data/; ARGS="-f contest.yaml" for another contest, of the others too
	$(PYTHON) kaggle_kernel/client.py download $(ARGS)

kernel: in-sync ## build one notebook in kaggle_kernel/; ARGS="-p lr 0.001 -f best.yaml --title … --dataset owner/slug"
	$(PYTHON) kaggle_kernel/build.py $(ARGS)

push: kernel ## build the kernel and push it to Kaggle
	$(PYTHON) kaggle_kernel/client.py push

output: setup ## fetch the finished kernel's output into runs/kaggle, checked against DATA
	$(PYTHON) kaggle_kernel/client.py output --data "$(filter-out phantom,$(DATA))" $(ARGS)

submit: setup ## submit runs/RUN/submission.csv (without RUN that of runs/kaggle), checked against DATA
	$(PYTHON) kaggle_kernel/client.py submit $(if $(filter file,$(origin RUN)),,--run "$(RUN)") --data "$(filter-out phantom,$(DATA))" $(ARGS)

##@ For those who change the kit

test: in-sync $(VENV)/.ctseg-cluster ## the test suite; twenty minutes on 2 cores
	$(PYTHON) -m pytest

$(VENV)/.ctseg-cluster: pyproject.toml | setup
	$(PYTHON) $(INSTALL) --editable ".[cluster]"
	touch $@

lint: $(VENV)/.ctseg-dev ## format and lint, as ruff has it; `ruff format` in VENV fixes the format
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m ruff check

$(VENV)/.ctseg-dev: pyproject.toml | setup
	$(PYTHON) $(INSTALL) --editable ".[dev]"
	touch $@

test-kernel: setup $(VENV)-kaggle/.ctseg ## the kernel as Kaggle receives it, run by Kaggle's papermill and Jupyter
	$(PYTHON) -m pytest tests -m kernel --python "$(abspath $(VENV)-kaggle)/bin/python"

# Kaggle's versions, over the PyTorch of VENV, without ctseg.
$(VENV)-kaggle/.ctseg: tests/tools/kaggle_image.txt | setup
	$(PYTHON) -m venv $(VENV)-kaggle
	$(VENV)-kaggle/bin/python $(INSTALL) -r tests/tools/kaggle_image.txt
	$(PYTHON) -c "import site; print(site.getsitepackages()[0])" > "$$($(VENV)-kaggle/bin/python -c "import site; print(site.getsitepackages()[0])")/pytorch.pth"
	touch $@

test-browser: setup $(VENV)/.ctseg-browser ## JupyterLab and the report in a headless Chromium, which has to be installed
	$(PYTHON) -m pytest tests -m browser

$(VENV)/.ctseg-browser: pyproject.toml | setup
	$(PYTHON) $(INSTALL) --editable ".[browser]"
	touch $@

kill: setup ## runs killed at 34 random moments end as if never killed; full disks; ten minutes
	$(PYTHON) -m pytest tests -s -m kill

fuzz: setup ## 100,000 random masks through the run-length code and back, and broken codes; a minute
	$(PYTHON) -m pytest tests -m fuzz

mutants: setup ## the fast tests notice each of some 200 faults seeded into ctseg; tens of minutes
	$(PYTHON) tests/tools/mutants.py

bench: setup ## times of this machine, and Dice against training seconds; DATA=, PRESET=, ARGS="--minutes 1 4"
	$(PYTHON) tests/tools/bench.py --data "$(DATA)" --preset $(or $(PRESET),quick) $(ARGS)

sync: setup ## bring the .ipynb and .py of each pair in step, the newer one wins
	$(VENV)/bin/jupytext --sync notebooks/*.py

in-sync: setup
	@$(PYTHON) -m ctseg.pairs check
