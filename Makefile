# `make run`: the whole pipeline. `make compare`: a small grid of experiments. `make test`: the tests. Everything else is for developers.
PYTHON ?= python3
BIN := .venv/bin
# A further package index for builds of torch and torchvision without CUDA, which pip then prefers (about 0.4 GB instead of 3 GB on Linux):
#     make run TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Only a .venv that has no torch yet is affected; else `make clean` first.
TORCH_INDEX ?=
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# dvc.yaml and the tests say `python`: the project's own comes first.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := 1
# DVC asks for a home and a name, which a user that the system does not know (docker run --user) lacks.
ifeq ($(filter-out /,$(HOME)),)
export HOME := $(CURDIR)/runs/home
endif
export USER ?= $(shell id -u)

.PHONY: run compare study test test-long test-gpu lint clean

run: .venv/installed
	@python -m ral.config
	@RAL_RUN_ID=$$(python -c 'from ral.runs import new_id; print(new_id())') dvc repro
	@python -m ral.reporting.summary

# Two losses, two seeds, three epochs each, and their paired comparison.
compare: .venv/installed
	@python -m flows.compare loss.name=ral,bce train.seed=0,1 --set train.epochs=3

# Trains the arms of docs/study.md on the prepared images and writes docs/RESULTS.md; options in STUDY, such as
# STUDY='--hours 8 --jobs 2'.
STUDY ?=
study: .venv/installed
	@python -m benchmarks.study $(STUDY)
	@python -m benchmarks.study.results

test: .venv/installed-dev
	pytest -n 3 --dist loadfile --no-loadscope-reorder

test-long: .venv/installed-dev
	pytest -m long

# On a machine with a GPU; the other tests do not use it.
test-gpu: .venv/installed-dev
	pytest -m gpu

lint: .venv/installed-dev
	ruff check
	ruff format --check
	mypy
	python tests/limits.py

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Set PYTHON=python3.11, say.") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP_INSTALL) -e '.[pipeline]'
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv
