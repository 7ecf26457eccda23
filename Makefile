# Two commands do everything: `make demo` and `make test`. Each first creates .venv from the pinned versions.
#   make setup      the environment, in .venv
#   make demo       trains PPO with and without memory on a POPGym task, and draws the curves
#   make test       the fast tests: what is not marked `slow`
#   make test-all   all tests
#   make contract   the tests of kernels and memories, but for learning, for a second Python: make contract VENV=... PYTHON=...
#   make check      lint, format, spelling and types
#   make clean      removes the environment, runs and what was built

VENV ?= .venv
# The first Python 3.11 or 3.12 that runs here; override with `make PYTHON=/path/to/python ...`.
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python $$HOME/.pyenv/versions/3.1[12]*/bin/python; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
RUN = $(VENV)/bin/python
READY = $(VENV)/.ready

# Two processes; a file's tests stay in one of them, so what they share is made once. The longest files begin first.
PYTEST = $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test test-all contract check clean

setup: $(READY)

$(READY): pyproject.toml constraints/py311.txt constraints/py312.txt
	@test -n "$(PYTHON)" || { echo "error: Engram needs Python 3.11 or 3.12 on the PATH (or: make PYTHON=...)" >&2; exit 2; }
	@echo "setting up $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(VENV)
	@pins=constraints/py$$($(RUN) -c 'import sys; print("%d%d" % sys.version_info[:2])').txt; \
	$(RUN) -m pip install --quiet --disable-pip-version-check uv 2>/dev/null; \
	UV_SYSTEM_CERTS=true $(VENV)/bin/uv pip install --quiet --python $(RUN) -c $$pins -e ".[dev]" \
	  || $(RUN) -m pip install --quiet --disable-pip-version-check -c $$pins -e ".[dev]"
	@$(RUN) -m engram.kernels.cpu
	@touch $(READY)

demo: $(READY)
	$(RUN) scripts/compare.py popgym-fast --memories s5 none --seeds 3 --out runs/demo
	$(RUN) scripts/evaluate.py runs/demo/popgym-RepeatPreviousEasy-s5
	@echo "look at runs/demo/curves.png, runs/demo/table.md and runs/demo/popgym-RepeatPreviousEasy-s5/eval.gif"

test: $(READY)
	$(PYTEST) -m "not slow"

test-all: $(READY)
	$(PYTEST)

contract: $(READY)
	$(PYTEST) tests/kernels tests/memory -k "not learns_to_remember and not gigabytes"

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell
	$(VENV)/bin/pyright

clean:
	rm -rf $(VENV) runs build dist
