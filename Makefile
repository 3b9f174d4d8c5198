# Fovea: `make help` lists what there is to do.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
PY := .venv/bin/python

# DATA=folder takes your own pictures instead of the embedded scenes, RECIPE=name-or-file other
# settings, RUN=folder another place for the results, SPLIT=train,val other splits, WORKERS=n
# processes, SMOKE=1 a few pictures only.
SPLIT ?= train
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
ifdef DATA
RUN ?= runs/$(notdir $(patsubst %/,%,$(DATA)))
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

.PHONY: help env scenes own-recipe chips eval test lint bench-chips clean

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
	  $(PY) -m chipgen suggest --data "$(DATA)" --split $(SPLIT) --out "$(RECIPE)"

chips: env $(PREPARE)  ## cut chips of DATA= (default: the embedded scenes) by RECIPE=
	@$(PY) -m chipgen plan "$(RUN)" --data "$(SOURCE)" --split $(SPLIT) --recipe "$(RECIPE)"
	@$(PY) -m chipgen negatives "$(RUN)"
	@$(PY) -m chipgen write "$(RUN)" --workers $(WORKERS)
	@$(PY) -m chipgen stats "$(RUN)" --json "$(RUN)/chips.json"

eval: chips  ## the main job; for now as far as the chips

test: env lint  ## run the tests
	@$(PY) -m pytest

lint: env
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

bench-chips: env  ## measure chip generation; PICTURES=folder takes real pictures (COCO layout)
	@$(PY) scripts/bench_chips.py $(if $(PICTURES),--data "$(PICTURES)") --out runs/bench/chips.json

clean:  ## delete the environment; data/ and runs/ stay
	rm -rf .venv
