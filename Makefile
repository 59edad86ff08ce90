# make demo: set up, train five silos on handwritten digits, show where the picture lies
# make test: set up with the tools of a developer, then lint, types and all tests
# make test-fast: lint, types and the tests of which none takes more than 15 seconds
# make test-slow: the others alone, which start networks of processes, or run README's blocks and the examples
# make coverage: the tests of test-fast with coverage, and the lines and branches that they never run
# make flower: the slow tests of examples/flower, with Flower in .venv-flower
# make docs: the documentation as a site in build/site; a broken link or a missing reference is an error
# make package: the source archive and the wheel in dist/, checked
# make clean: remove .venv, .venv-flower, build/ and dist/; what was trained, in runs/, stays

PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-fast test-slow coverage flower lint docs package install dev clean

demo: install
	rm -rf runs/demo
	$(BIN)/manyhands run recipes/digits-fedavg.toml --out runs/demo

# a worker for each core, with one thread each
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical

test: lint
	$(PYTEST)

test-fast: lint
	$(PYTEST) -m 'not slow'

test-slow: dev
	$(PYTEST) -m slow

coverage: dev
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n logical -m 'not slow'; tests=$$?; \
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report && exit $$tests

flower: .venv-flower/installed
	OMP_NUM_THREADS=1 .venv-flower/bin/python -m pytest -n logical --dist load -m slow tests/test_flower.py

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

docs: dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

package: dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

install: .venv/installed
dev: .venv/installed-dev

.venv/installed: pyproject.toml | .venv/bin/python
	@echo "installing Manyhands into .venv (about a minute, once)"
	$(PIP) --editable .
	@touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	@echo "installing Manyhands and the developer's tools into .venv (about two minutes, once)"
	$(PIP) --editable '.[dev]'
	@touch $@ .venv/installed

# Flower needs an older rich, typer and protobuf than the newest: what it installs comes before the packages of .venv
.venv-flower/installed: .venv/installed-dev
	$(BIN)/python -m venv .venv-flower
	.venv-flower/bin/python -m pip install --quiet --disable-pip-version-check 'flwr==1.42.*'
	packages='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	echo "import site; site.addsitedir('$$($(BIN)/python -c "$$packages")')" \
		> "$$(.venv-flower/bin/python -c "$$packages")/manyhands.pth"
	@touch $@

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer is on the PATH; install one, or say make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: $(PYTHON) is no Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "error: $(PYTHON) has no venv module; on Debian and Ubuntu: apt install $(notdir $(PYTHON))-venv" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

clean:
	rm -rf .venv .venv-flower build dist
