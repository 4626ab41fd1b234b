# `make run`: install, then the main job on the built-in scenes. `make test`: install, then the tests.
# Everything goes into .venv; nothing outside this folder changes, except the two system libraries for
# headless OpenGL, and those only where this runs as root on Debian or Ubuntu.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= sweeps

.PHONY: run test bench lint types install graphics clean

run: install graphics
	$(BIN)/cadloc-sweep run search_spaces/losses.yaml --out $(OUT)

test: install graphics
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not shared_data"

# Ratios against baselines of the same run; for an otherwise idle machine. `make bench ONLY="train render"`: some of them.
bench: install graphics
	$(BIN)/python -m benchmarks $(ONLY)

lint: install
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: install
	$(BIN)/mypy

install: $(VENV)/installed

# constraints.txt pins what was tested; -e so that a change of the code needs no second installation.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else "Python 3.11 or 3.12 is needed; this is " + sys.version.split()[0] + ". Say which one: make $(MAKECMDGOALS) PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

# Looks for libEGL and libGL; installs them as root on Debian/Ubuntu, else prints the one command.
graphics: install
	@sh scripts/graphics.sh $(BIN)/python

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
