# `make quickstart` and `make test` need nothing but Python >= 3.10: they make .venv, install, and run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test lint docs lowest clean

quickstart: $(INSTALLED)
	$(BIN)/dml fit -c experiments/quickstart.yaml

test: $(INSTALLED)
	$(BIN)/pytest --nbmake dml tests notebooks

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The pages, into build/site. The variable silences the theme's advice to move to its successor.
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict --quiet

# The lower bounds of setup.cfg, installed and tested.
lowest:
	$(MAKE) test VENV=.venv-lowest RESOLUTION=lowest-direct

# uv installs in seconds what takes pip minutes. Compiled once, `dml` starts in half the time where Python may not cache.
$(INSTALLED): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --resolution $(or $(RESOLUTION),highest) -e '.[dev,notebooks]'
	touch $@

clean:
	rm -rf .venv .venv-lowest build *.egg-info
