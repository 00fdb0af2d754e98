# Everything runs from here: python3, make and a package index are all it takes.  `make help` lists the targets.

PYTHON ?= python3
JOBS   ?= 2
ARGS   ?=
BENCH  ?= $(sort $(wildcard benchmarks/[a-z]*.py))

VENV := .venv
BIN  := $(VENV)/bin
# Two stamps, so that a user of the core never waits for the tools of the developers.
CORE := $(VENV)/.core.stamp
DEV  := $(VENV)/.dev.stamp
PINS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help install dev demo test check format bench constraints clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

$(CORE): $(PINS) | $(VENV)/pyvenv.cfg
	sh tools/install.sh $(VENV) .
	@touch $@

$(DEV): $(PINS) | $(VENV)/pyvenv.cfg
	sh tools/install.sh $(VENV) '.[dev]'
	@touch $(CORE) $@

install: $(CORE) ## .venv with the core dependencies only

dev: $(DEV) ## .venv with everything the tests and checks need

demo: $(CORE) ## tune a digits model to a reward; the report lands in runs/digits-demo (dated when that exists)
	@out=runs/digits-demo; \
	if [ -e "$$out" ]; then out="$$out-$$(date +%Y%m%d-%H%M%S)"; fi; \
	echo "girsanov run digits --out $$out"; \
	$(BIN)/girsanov run digits --out "$$out"

test: $(DEV) ## the tests, less those marked slow or gpu; more options through ARGS="..."
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

check: $(DEV) ## lint, formatting, types and the guards on the environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/guards.py

format: $(DEV) ## rewrite the code in the project's format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: $(DEV) ## every script in benchmarks/, or BENCH=benchmarks/one.py; one JSON line per figure
	@if [ -z "$(strip $(BENCH))" ]; then echo "benchmarks/ holds no scripts"; fi
	@for script in $(BENCH); do $(BIN)/python "$$script" $(ARGS) || exit 1; done

constraints: $(VENV)/pyvenv.cfg ## resolve the dependencies anew and rewrite constraints.txt
	sh tools/constraints.sh $(VENV)

clean: ## remove the environment, caches and build outputs; runs/ is kept
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
