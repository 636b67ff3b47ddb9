# Two commands: `make train` and `make test`. Each sets up .venv first, if that has not been done.
PYTHON ?= python3
DEVICE ?= auto
ARGS ?=
BIN := .venv/bin
STAMP := .venv/installed-for-$(DEVICE)

.PHONY: help setup train test bench sanitize lint typecheck lock clean

help:
	@echo "make train      set up, then the default training run   (ARGS=\"--seed 1\" adds arguments)"
	@echo "make test       set up, then the test suite             (ARGS=\"tests/test_x.py -k name\" adds arguments)"
	@echo "make setup      only the virtual environment .venv      (PYTHON=python3.12, DEVICE=auto|cpu|cuda)"
	@echo "make bench      the benchmarks"
	@echo "make sanitize   the tests of the C++ extension under the address, undefined-behaviour and thread sanitizers"
	@echo "make lint       style and format check"
	@echo "make typecheck  mypy"
	@echo "make lock       resolve requirements/*.txt again (needs uv)"
	@echo "make clean      remove caches and build outputs, not .venv and not runs/"

setup: $(STAMP)

# An environment made for another DEVICE is made anew, and its stamp goes with it.
$(STAMP): requirements/cpu.txt requirements/cuda.txt requirements/torch-cuda.txt requirements/install.py setup.py pyproject.toml $(wildcard csrc/*)
	@command -v $(PYTHON) >/dev/null || { echo "set-up: no $(PYTHON) found. Install Python 3.11 or newer, or name it: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) requirements/install.py $(DEVICE)
	@touch $@

train: $(STAMP)
	@$(BIN)/torchrun siri/train.py $(ARGS)

test: $(STAMP)
	@$(BIN)/pytest $(ARGS)

bench: $(STAMP)
	@$(BIN)/pytest benchmarks $(ARGS)

sanitize: $(STAMP)
	@$(BIN)/pytest -m sanitize $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

# mypy reads files, not import hooks: it gets the installed shape of the package as a folder of links.
typecheck: $(STAMP)
	@rm -rf build/typecheck && mkdir -p build/typecheck/siri
	@ln -s $(CURDIR)/siri/* $(CURDIR)/kernels $(CURDIR)/engine build/typecheck/siri/
	@MYPYPATH=build/typecheck $(BIN)/mypy

lock:
	@python3 requirements/lock.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find siri engine kernels tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
