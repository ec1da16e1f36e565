# Every target sets up what it needs and says what it does; a second run finds it done.
#   make PYTHON=python3.12 ...   which Python (3.11 or newer) makes the virtual environments
#   make test ARGS="tests/ice"   further arguments of the program that is run
#   make test JOBS=0             tests in one process; otherwise in so many, a file's tests always in the same

PYTHON ?= python3
ARGS ?=
JOBS ?= 2

BIN := .venv/bin
VENV := .venv/.installed
AIOICE := .peers/aioice/.installed
AIOICE_VERSION := 0.13.0
PION := .peers/pion/.installed

.PHONY: help setup debian peers demo check test explore wheel lint bench fuzz docs map clean
.DEFAULT_GOAL := help

help: ## this list
	@echo "Targets of Polynya:"
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r name text; do \
		printf '%-14s %s\n' "$$name" "$$text"; done

setup: $(VENV) debian peers ## .venv with polynya and all it can use, Debian packages (as root), foreign peers in .peers
	@echo "ready: $$($(BIN)/python --version) in .venv"

demo: $(VENV) ## two processes find each other on this machine and talk; then the table of NATs (at most 20 s)
	$(BIN)/polynya demo $(ARGS)

check: $(VENV) ## the fast tests while you work (at most 3 minutes): machines, virtual network, real loopback
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow and not root and not peer" $(ARGS)

test: setup ## all tests; as root also those with namespaces, captures and foreign programs
	@mkdir -p .cache
	POLYNYA_SKIPPED=.cache/skipped.txt $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

explore: $(VENV) ## random worlds by seed, without and with TURN servers, for an hour or two (ARGS="--seeds 100 --from 7")
	$(BIN)/python scripts/explore.py --seeds 10000 $(ARGS)
	$(BIN)/python scripts/explore.py --seeds 10000 --lossy $(ARGS)
	$(BIN)/python scripts/explore.py --seeds 3000 --relayed $(ARGS)

wheel: $(VENV) ## build the wheel and use it in clean environments: bare and [all], oldest and newest Python
	$(BIN)/python scripts/check_wheel.py $(ARGS)

lint: $(VENV) ## ruff (format and rules), mypy strict
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV) peers ## measure against other programs; writes docs/benchmarks.md
	$(BIN)/python -m bench.run $(ARGS)

fuzz: $(VENV) ## mutate messages without end against the decoders, or a TURN server (ARGS="turn --seed 7 --count 100000")
	$(BIN)/python scripts/fuzz.py $(ARGS)

docs: $(VENV) ## build the documentation into site/, broken links being errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

map: $(VENV) ## write the map of files into the architecture page, from the module docstrings
	$(BIN)/python scripts/map.py

clean: ## remove all that make made, the virtual environments too
	rm -rf .venv .peers .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

debian:
	@sh scripts/debian.sh

# A peer that cannot be installed is no failure: its tests skip and say so.
peers: $(VENV)
	@$(MAKE) -s --no-print-directory $(AIOICE) || echo "aioice could not be installed; its tests and benches will be skipped"
	@$(MAKE) -s --no-print-directory $(PION) || echo "pion could not be built; its tests will be skipped"

$(VENV): pyproject.toml constraints.txt
	@python=$$(sh scripts/find_python.sh "$(PYTHON)") && \
		sh scripts/venv.sh "$$python" .venv -c constraints.txt -e '.[dev]'
	@touch $@

$(AIOICE): Makefile
	@python=$$(sh scripts/find_python.sh "$(PYTHON)") && \
		sh scripts/venv.sh "$$python" .peers/aioice aioice==$(AIOICE_VERSION)
	@touch $@

$(PION): scripts/pion.sh tests/interop/pion/go.mod $(wildcard tests/interop/pion/*/*.go)
	@python=$$(sh scripts/find_python.sh "$(PYTHON)") && sh scripts/pion.sh "$$python"
	@touch $@
