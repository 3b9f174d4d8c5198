# Fovea: `make help` lists what there is to do.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
PY := .venv/bin/python

# DATA=folder takes your own pictures instead of the embedded scenes, RECIPE=name-or-file other
# settings, RUN=folder another place for the results, SPLIT=train,val other splits, WORKERS=n
# processes, SMOKE=1 a few of the scenes only, GPUS=n one process for each of n GPUs,
# SPLIT_EVAL=val the splits to evaluate on.
SPLIT ?= train
SPLIT_EVAL ?= val
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
ifdef DATA
unslashed = $(if $(filter %/,$(1)),$(call unslashed,$(patsubst %/,%,$(1))),$(1))
DATA_NAME = $(filter-out . ..,$(notdir $(call unslashed,$(DATA))))
RUN ?= runs/$(or $(DATA_NAME),$(error DATA=$(DATA) has no name for the run folder; name one with RUN=))
RECIPE ?= $(RUN)/recipe.toml
SOURCE := $(DATA)
PREPARE := own-recipe
else
SCENES := $(if $(SMOKE),scenes-smoke,scenes-small)
RUN ?= runs/$(SCENES)
RECIPE ?= scenes-small
SOURCE := data/$(SCENES)
PREPARE := scenes
endif

# of a proposed recipe: pretrained where a GPU is, else what two cores can train
NETWORK ?= $(if $(shell command -v nvidia-smi),resnet50,small)
GPUS ?= 1
TRAIN := $(if $(filter-out 1,$(GPUS)),-m torch.distributed.run --standalone --nproc-per-node $(GPUS)) -m train

SIDE_BY_SIDE := --numprocesses=auto --maxprocesses=8 --dist=loadfile --no-loadscope-reorder
KERNEL_TESTS := $(addprefix tests/test_,$(addsuffix .py,cover plan negatives boxes pyramid cut resample draws focus stack warp))

# what `check` holds against the plan before anything is trained
EVALUATED := $(if $(filter eval bench-infer,$(MAKECMDGOALS)),--data "$(SOURCE)" --split "$(SPLIT_EVAL)")

.PHONY: help env scenes own-recipe chips train eval cluster test test-cluster lint bench-chips bench-train bench-infer scale claims faults gpu-check clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

env: .venv/.installed  ## make the environment in .venv and nothing else

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Fovea needs Python 3.11 or later; name one with PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

scenes: env  ## draw the embedded data set into data/
	@$(PY) scripts/make_scenes.py $(SOURCE) --size small --workers $(WORKERS) \
	  $(if $(SMOKE),--pictures-train 48 --pictures-val 16)

own-recipe: env
	@[ "$(RECIPE)" != "$(RUN)/recipe.toml" ] || [ -e "$(RECIPE)" ] || \
	  $(PY) -m chipgen suggest --data "$(DATA)" --split "$(SPLIT)" --network $(NETWORK) --out "$(RECIPE)"

chips: env $(PREPARE)  ## cut chips of DATA= (default: the embedded scenes) by RECIPE=
	@$(PY) -m chipgen plan "$(RUN)" --data "$(SOURCE)" --split "$(SPLIT)" --recipe "$(RECIPE)"
	@$(PY) -m infer check "$(RUN)" --recipe "$(RECIPE)" --processes $(GPUS) $(EVALUATED)
	@$(PY) -m chipgen write "$(RUN)" --kind positive --workers $(WORKERS)
	@$(PY) -m infer proposals "$(RUN)" --recipe "$(RECIPE)" --check; code=$$?; \
	if [ $$code = 3 ]; then \
	  $(PY) $(TRAIN) "$(RUN)" --recipe "$(RECIPE)" --set train.task=rpn --resume && \
	  $(PY) -m infer proposals "$(RUN)" --recipe "$(RECIPE)"; \
	else exit $$code; fi
	@$(PY) -m chipgen negatives "$(RUN)"
	@$(PY) -m chipgen write "$(RUN)" --kind negative --workers $(WORKERS)
	@$(PY) -m chipgen stats "$(RUN)" --json "$(RUN)/chips.json"

train: chips  ## train a detector on the chips by RECIPE=; a second call goes on where it was stopped
	@$(PY) $(TRAIN) "$(RUN)" --recipe "$(RECIPE)" --resume $(if $(SMOKE),--set train.epochs=1)

eval: train  ## the main job: AutoFocus, the full pyramid and each level alone on SPLIT_EVAL=val
	@$(PY) -m infer eval "$(RUN)" --data "$(SOURCE)" --split "$(SPLIT_EVAL)" --recipe "$(RECIPE)"

# The kernels run once more with their indices checked, compiled into a cache of their own, and
# with threads.
test: env lint  ## run the tests
	@$(PY) -m pytest $(SIDE_BY_SIDE)
	@NUMBA_BOUNDSCHECK=1 NUMBA_NUM_THREADS=2 NUMBA_CACHE_DIR=.venv/numba-checked \
	  $(PY) -m pytest -q $(SIDE_BY_SIDE) $(KERNEL_TESTS)

test-cluster: env  ## run the whole pipeline on a small Slurm of its own on this machine
	@$(PY) -m pytest -m cluster tests/test_cluster.py

cluster: env $(PREPARE)  ## submit chips, training and evaluation to Slurm; CLUSTER= options of submit
	@scripts/slurm/submit "$(RUN)" --data "$(SOURCE)" --split "$(SPLIT)" --split-eval "$(SPLIT_EVAL)" \
	  --recipe "$(RECIPE)" $(CLUSTER)

lint: env
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

bench-chips: env  ## measure chip generation; PICTURES=folder takes your own (COCO or VOC layout)
ifndef PICTURES
	@$(PY) scripts/make_scenes.py data/scenes-bench --size full --workers $(WORKERS) \
	  --pictures-train 160 --pictures-val 1
endif
	@$(PY) scripts/bench_chips.py --data "$(or $(PICTURES),data/scenes-bench)" --split "$(SPLIT)" \
	  --out runs/bench/chips.json

bench-train: env  ## measure the trainer: loader, step, and epochs against other strategies
	@$(PY) scripts/make_scenes.py data/scenes-bench --size full --workers $(WORKERS) \
	  --pictures-train 160 --pictures-val 1
	@$(PY) scripts/bench_train.py --data data/scenes-bench --out runs/bench/train.json

bench-infer: train  ## measure inference with the trained detector, and its limits
	@$(PY) scripts/bench_infer.py "$(RUN)" --recipe "$(RECIPE)" --data "$(SOURCE)" \
	  --split "$(SPLIT_EVAL)" --out runs/bench/infer.json

scale: env  ## how it scales: a table on paper; PICTURES=10000000 tries plan and order on made-up ones
	@$(PY) scripts/scale.py --out runs/scale.json $(if $(PICTURES),--simulate $(PICTURES))

# KNOWN=claims.json of another machine: its runs are not repeated.
claims: env  ## train the scenes by each strategy and three seeds (hours); goes on where it was stopped
	@$(PY) scripts/make_scenes.py data/scenes-small --size small --workers $(WORKERS)
	@$(PY) scripts/claims.py $(if $(KNOWN),--known "$(KNOWN)")

# FAULTS=n faults, SEED=n others, KIND=name,name of some kinds only.
faults: env  ## kill, starve and mislead every stage, and see that nothing is lost (20 minutes)
	@$(PY) scripts/faults.py --faults $(or $(FAULTS),200) --seed $(or $(SEED),0) \
	  $(if $(KIND),--only $(KIND)) --out runs/faults.json

gpu-check: env  ## on a machine with a GPU: all that only a GPU shows, in ten minutes
	@$(PY) scripts/gpu_check.py --out runs/gpu-check.json

clean:  ## delete the environment; data/ and runs/ stay
	rm -rf .venv
