# `make` sets up and runs the main job; `make test` sets up and tests.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SCALE  ?= laptop
CORES  ?= all

.PHONY: run test faults lint format setup benchmarks reference clean

run: setup
	$(BIN)/snakemake --profile workflows/profiles/laptop --cores $(CORES) --config scale=$(SCALE)
	@$(BIN)/secondlook judge --summary --scale $(SCALE)

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml envs/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $$($(PYTHON) --version) was found. Try: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "No virtual environment could be made. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c envs/constraints.txt -e '.[peers,dev]'
	@touch $@

test: setup lint
	$(BIN)/python -m pytest -n 2

# The long campaign behind docs/reliability.md: a paper of each family, killed twenty times.
faults: setup
	$(BIN)/python -m pytest -m campaign -s tests/faults

lint: setup
	$(BIN)/ruff format --check --quiet . || { echo "run: make format"; exit 1; }
	$(BIN)/ruff check --quiet .
	$(BIN)/snakefmt --check --compact-diff Snakefile workflows/*.smk
	$(BIN)/lint-imports --no-cache

format: setup
	$(BIN)/ruff format . && $(BIN)/ruff check --fix . && $(BIN)/snakefmt Snakefile workflows/*.smk

benchmarks: setup
	$(BIN)/snakemake --profile workflows/profiles/laptop --cores $(CORES) --config scale=$(SCALE) -- benchmarks

# Keep this run's tables as the suite's own last measured ones. Read the findings again afterwards.
reference: run
	$(BIN)/python -m secondlook reference --scale $(SCALE)

clean:
	rm -rf $(VENV) .snakemake .pytest_cache .ruff_cache .hypothesis
