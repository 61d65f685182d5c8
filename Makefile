# Everything a fresh machine needs beside make and a Python >= 3.11 is set up here.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test check format bench clean

setup: $(VENV)/.ready

# uv lives in an environment of its own, so that the project's holds exactly what uv.lock says.
$(VENV)/.ready: pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys; sys.exit("sapflow needs Python 3.11 or later; say: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@command -v uv >/dev/null 2>&1 || test -x .uv/bin/uv || ($(PYTHON) -m venv .uv && .uv/bin/pip install --quiet uv)
	@PATH="$$PATH:$(CURDIR)/.uv/bin" UV_PYTHON_DOWNLOADS=never uv sync --quiet --locked --compile-bytecode --python $(PYTHON)
	@$(BIN)/python -m compileall -q src tools tests
	@touch $@

demo: setup
	@$(BIN)/python -m tools.demo $(if $(KEEP),--keep)

test: setup
	@$(BIN)/python -m pytest

check: setup
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: setup
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: setup
	@$(BIN)/python -m tools.bench

clean:
	rm -rf $(VENV) .uv .peers
