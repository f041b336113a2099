# make quickstart | test | test-fast | test-full | stress | fuzz | check | scripts | docs | clean. Another Python: make PYTHON=python3.12 quickstart

PYTHON ?= python3
# Versions to install; with `make CONSTRAINTS= quickstart`, the newest that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
VENV := .venv
INSTALLED := $(VENV)/installed

N ?= 50
EXAMPLES ?= 500
FULL ?= full

.PHONY: quickstart test test-fast test-full stress fuzz check scripts docs clean

quickstart: $(INSTALLED)
	$(VENV)/bin/robustly run configs/tiny.yaml

PYTEST := $(VENV)/bin/python -m pytest -n auto --maxprocesses 4

# Everything that a change must pass but for `test-full`.
test: $(INSTALLED)
	$(PYTEST) -m "not slow and not full"

# What starts no process, while you work.
test-fast: $(INSTALLED)
	$(PYTEST) -m "not slow and not full and not processes" tests/unit

# Kills at random moments; several hosts, Slurm, Ray and an older transformers, where they are installed (.ci/setup).
# With FULL="full and not long" a part of the table of faults, as `.ci/run` has it. More workers than cores: they wait
# for time-outs more than they work.
test-full: $(INSTALLED)
	$(PYTEST) -n 4 -m "$(FULL)"

# A training is killed N times at random moments and compared with an undisturbed one: minutes.
stress: $(INSTALLED)
	$(VENV)/bin/python -m tests.stress.kills $(N)

# Every reader with EXAMPLES damaged files, others each time: minutes. `make test` has a few, always the same.
fuzz: $(INSTALLED)
	FUZZ_EXAMPLES=$(EXAMPLES) $(PYTEST) tests/fuzz

check: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The ready scripts in launch/: again after a change of a launcher, a published config or an estimate.
scripts: $(INSTALLED)
	$(VENV)/bin/python -m robustly.preflight.ready

# The API reference, from docstrings: open site/index.html.
docs: $(INSTALLED)
	$(VENV)/bin/python docs/api.py site

# Made once, and again when pyproject.toml or the constraints change. pip takes torch from the indexes that it is configured with,
# and would compile on one core: half of the time. Some libraries bring files that are templates and do not compile.
$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	    echo "robustly needs Python 3.11 to 3.13; $(PYTHON) is: $$($(PYTHON) --version 2>&1)"; \
	    echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@echo "Installing robustly and what it needs into $(VENV): about two minutes, longer on a slow network ..."
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install -qq --no-compile --disable-pip-version-check $(CONSTRAINTS:%=--constraint %) --editable '.[dev]'
	@$(VENV)/bin/python -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

# Runs stay: they are somebody's work.
clean:
	rm -rf $(VENV) .ci/transformers-4 site dist .coverage *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
