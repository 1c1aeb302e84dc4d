# Three commands on a fresh machine: make demo, make test, make lint. Each sets up .venv where it is not there yet.

PYTHON ?= $(shell for v in 3.11 3.12; do command -v python$$v >/dev/null 2>&1 && python$$v -c '' >/dev/null 2>&1 && echo python$$v && break; done)
TORCH := $(shell grep '^torch==' constraints.txt)
VENV := .venv
BIN := $(VENV)/bin
# One stamp a state of the two files: a change of either installs again, a checkout with new dates does not.
STATE := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
STAMP := $(VENV)/.installed-$(STATE)
DOCS := $(VENV)/.documented-$(STATE)
STUDY ?= study-digits

.PHONY: help setup compiler demo test test-all test-emulated lint docs bench tables clean

help:
	@echo "make demo      explore the embedded default for five minutes, print the frontier, write its page"
	@echo "make test      the tests (without those marked slow)"
	@echo "make test-all  all tests"
	@echo "make lint      ruff, mypy, import-linter, codespell and the words of the house"
	@echo "make docs      the site, into site/; a broken link or a warning fails"
	@echo "make bench     the benchmarks"
	@echo "make tables    what pages take from the code: lists of methods, the reference of the API and of the command line"
	@echo "make clean     remove the environment and what the tools left"

setup: $(STAMP)

$(STAMP):
	@if [ -z "$(PYTHON)" ]; then \
	  echo "Thrifty needs Python 3.11 or 3.12 and found neither. Install one (Debian: apt install python3.11 python3.11-venv;" >&2; \
	  echo "Fedora: dnf install python3.12; any system: pyenv install 3.12), or name it: make PYTHON=/path/to/python3.12" >&2; \
	  exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "$(PYTHON) is not Python 3.11 or 3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) could not make a virtual environment; on Debian: apt install $(notdir $(PYTHON))-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet "pip>=25.1"  # the first that reads dependency groups
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt --editable ".[all]" --group dev
	@rm -f $(VENV)/.installed-*
	@touch $@

# Inductor writes C++ and compiles it.
compiler:
	@$${CXX:-g++} --version >/dev/null 2>&1 || { \
	  echo "No C++ compiler: Inductor needs one. Install g++ (Debian: apt install g++; Fedora: dnf install gcc-c++)," >&2; \
	  echo "or name yours: CXX=clang++ make ..." >&2; exit 1; }

demo: setup compiler
	$(BIN)/thrifty explore digits --budget 5m --max-drop 1pt --minimize latency --study $(STUDY)
	$(BIN)/thrifty report $(STUDY)

# Two processes, a file to one of them; threads that wait leave the processor to the other's. A process that dies ends the run.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart=0

test: setup compiler
	$(PYTEST) -m "not slow"

test-all: setup compiler
	$(PYTEST)

# int8 on an emulated processor with AVX2 alone; skipped where there is no qemu-x86_64.
test-emulated: setup compiler
	$(BIN)/python -m pytest -q tests/test_processors.py -k emulated

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python docs/words.py

docs: $(DOCS)
	$(BIN)/python docs/build.py

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt --group docs
	@rm -f $(VENV)/.documented-*
	@touch $@

bench: setup compiler
	$(BIN)/python benchmarks/overhead.py --study $(STUDY)-overhead
	$(BIN)/python benchmarks/aa.py

tables: setup
	$(BIN)/python docs/tables.py
	$(BIN)/python docs/reference.py

clean:
	rm -rf $(VENV) site build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
