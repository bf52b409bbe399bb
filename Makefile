# make demo: train, evaluate and predict on digits.   make test: the tests.   make docs: the site, in build/site.
# Each builds .venv when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS := $(shell nproc 2>/dev/null || echo 1)
# pytest's status where PYTEST="…" leaves no test
NONE_CHOSEN := 5
# tests start hundreds of processes: where the environment forbids it, each would compile all that it imports
unexport PYTHONDONTWRITEBYTECODE
# to read the other files takes longer than what they hold: 20 s
ALONE := $(shell grep -rl --include='test_*.py' 'mark\.alone' tests)
# further options of pip
PIP_OPTIONS ?=
# installed again when what is asked for changes
STAMP := $(VENV)/.installed

# longer than a check may take: damaged inputs by the thousand, and SIGKILL at random moments
INPUTS ?= 100000
CASES ?= 10000
KILLS ?= 200
TERMS ?= 100
OVERLOAD ?= 300

.PHONY: demo long pages fuzz soak ray test lint types types-elsewhere docs check clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_OPTIONS) --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install $(PIP_OPTIONS) --quiet --disable-pip-version-check --constraint constraints.txt --no-deps trackio
	touch $(STAMP)

demo: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

# the tests that bear company side by side, a processor each; then those that do not, one after the other
test: $(STAMP)
	$(BIN)/python -m pytest -m "not alone" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST) || test $$? -eq $(NONE_CHOSEN)
	$(BIN)/python -m pytest -m alone $(or $(PYTEST),$(ALONE)) || test $$? -eq $(NONE_CHOSEN)

# what `make test` leaves out, and counts in its last lines: compilers, long runs, and all cases where a few stand for them
long: $(STAMP)
	$(BIN)/python -m pytest -m "long and not alone" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST) || test $$? -eq $(NONE_CHOSEN)
	$(BIN)/python -m pytest -m "long and alone" $(or $(PYTEST),$(ALONE)) || test $$? -eq $(NONE_CHOSEN)

# the commands of every page, and every tutorial; those of README and one tutorial alone are in the tests
pages: $(STAMP)
	VIVACE_TEST_PAGES=all $(BIN)/python -m pytest tests/test_documented_commands.py tests/docs/test_tutorials.py

fuzz: $(STAMP)
	$(BIN)/python tests/fuzz/run.py --inputs $(INPUTS)
	$(BIN)/python tests/serving/described.py --cases $(CASES)

soak: $(STAMP)
	$(BIN)/python tests/soak/run.py --kills $(KILLS)
	$(BIN)/python tests/soak/servers.py --terms $(TERMS) --overload $(OVERLOAD)

# a prediction over a Ray cluster of this machine, one worker killed: it installs Ray, 220 MB
ray: $(STAMP)
	$(BIN)/python -m pip install $(PIP_OPTIONS) --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[ray]'
	$(BIN)/python -m pytest tests/batch/test_ray_cluster.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# as Windows and macOS see it, by the types of the standard library: a minute
types-elsewhere: $(STAMP)
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin

# a link or an anchor that leads nowhere ends it (but not with --quiet); nothing is fetched
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

check: lint types docs test

clean:
	rm -rf $(VENV) runs build dist .mypy_cache .ruff_cache .pytest_cache
