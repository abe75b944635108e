# Every target sets up what it needs; PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Without compiled modules, each of the many processes that the tests start would compile them again.
unexport PYTHONDONTWRITEBYTECODE

# Words that Optuna's and PostgreSQL's documentation would not use.
PRIVATE_WORDS := \b(courier|errands?|whoever|anew|gravest|farewell|handed on|went silent|the house)\b|"""(Owns|Give) 

.PHONY: install install-dev demo test test-all test-engines compose-test coverage lint docs lock dashboard clean

PIP_INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

# What users need.
install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e ".[all]"
	@touch $@

# What developers need too; pip has dependency groups since 25.1.
install-dev: $(VENV)/.installed-dev

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) "pip>=25.1"
	$(PIP_INSTALL) --group dev
	@touch $@

# A study of 33 real trainings on this machine, and its answer: from the program and from the database.
demo: install
	$(BIN)/hpopt run studies/quickstart.toml --workers 2
	$(BIN)/hpopt best quickstart --format json
	$(BIN)/hpopt db sql "select * from hpopt.best_params"

# The fast tests, and which of them are the slowest.
test: install-dev
	$(BIN)/python -m pytest --durations=20

# The fast tests, those of the engines, and those that take minutes.
test-all: test test-engines
	$(BIN)/python -m pytest -m long

# A real Slurm, Ray and containers, on Debian 12 as root: installs what they need.
test-engines: install-dev
	bash tests/engines/install.sh
	bash tests/engines/install-containers.sh
	$(PIP_INSTALL) -e ".[ray]"
	$(BIN)/python -m pytest -m engine -rs

# The images and compose.yaml with podman, on Debian 12 as root: a study from its file to the answer.
compose-test: install-dev
	bash tests/engines/install-containers.sh
	$(BIN)/python -m pytest -m engine -n 0 -rs tests/engines/test_containers.py

# The fast tests with the coverage of src/hpopt, child processes included.
coverage: install-dev
	$(BIN)/python -m pytest --cov=hpopt --cov-report=term-missing:skip-covered

lint: install-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@! git grep -niE '$(PRIVATE_WORDS)' -- ':!Makefile'

# The generated pages, and the JSON Schema of study files.
docs: install-dev
	$(BIN)/python docs/generate.py
	$(BIN)/python -m hpopt.study.schema > studies/study.schema.json

# The packages of the images with their hashes: after a change of pyproject.toml or constraints.txt.
UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header
lock: install-dev
	$(PIP_INSTALL) uv
	$(UV_COMPILE) -c constraints.txt pyproject.toml -o docker/core.lock
	echo hatchling | $(UV_COMPILE) -c constraints.txt - -o docker/build.lock
	echo torch | $(UV_COMPILE) -c constraints.txt -c docker/core.lock - -o docker/torch.lock
	$(UV_COMPILE) -c constraints.txt -c docker/core.lock -c docker/torch.lock pyproject.toml --extra train -o docker/train.lock \
		$$(sed -n 's/^\([a-z0-9-]*\)==.*/--no-emit-package \1/p' docker/core.lock docker/torch.lock)

dashboard: install
	$(BIN)/hpopt dashboard

# What can be made again; studies and their database in .hpopt stay.
clean:
	rm -rf $(VENV) report build dist .coverage .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
