# sparkrig.serving: `make demo` serves a model on a four-node lab, `make test` runs the whole test suite.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

export SPARKRIG_CACHE ?= $(HOME)/.cache/sparkrig
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export PYTHONPATH := $(CURDIR)
# Where a shell sets it, every run would compile every test anew.
unexport PYTHONDONTWRITEBYTECODE

VENV := $(SPARKRIG_CACHE)/venv/$(shell { cat requirements.txt; python3 --version; } | sha256sum | cut -c1-12)
BIN := $(VENV)/bin
export PATH := $(BIN):$(PATH)
COLLECTION := .collections/ansible_collections/sparkrig/serving
PYTHON_FOLDERS := lab inventory/lab tests/unit tests/oracle tests/wheels tests/bench tests/gates tests/commands tests/fixtures docs

.PHONY: help
help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-14s %s\n", $$1, $$2}'

# --- What both commands need ------------------------------------------------------------------------------

# Its name holds a digest of the requirements, so a clone that is newer than it makes nothing anew.
$(VENV)/.complete:
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "lab: python3 is $$(python3 --version); 3.11 or newer is needed. Put a newer python3 first in PATH."; exit 1; }
	@echo "lab: making the tools' virtual environment"
	@rm -rf $(VENV) && python3 -m venv $(VENV)
	@$(BIN)/pip install --quiet "$$(grep -oE '^uv==[0-9.]+' requirements.txt)"
	@# uv is quick, but knows nothing of a mirror in the user's pip configuration; pip does.
	@$(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python --requirement requirements.txt || \
	  $(BIN)/pip install --quiet --requirement requirements.txt
	@touch $@

$(COLLECTION):
	@mkdir -p $(dir $@) && ln -s ../../.. $@

.PHONY: venv
venv: $(VENV)/.complete $(COLLECTION) ## Make .venv from the pinned requirements
	@ln -sfn $(VENV) .venv

.PHONY: system
system: ## Install the lab's system packages where they are missing
	@lab/system.sh

.PHONY: requirements
requirements: venv ## Compile requirements.in into requirements.txt
	@uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-header \
	  --output-file requirements.txt requirements.in

# --- The lab ------------------------------------------------------------------------------------------------

.PHONY: demo
demo: system venv ## Serve a model on four local nodes, from nothing, and print the endpoint
	@python -m lab.demo

.PHONY: up
up: system venv ## Make the lab's nodes, or repair them, without serving anything
	@python -m lab.nodes up

.PHONY: down
down: venv ## Remove the lab: nodes, links, keys; the cache stays
	@python -m lab.nodes down

.PHONY: clean
clean: down ## Remove the lab and its cache
	@python -m lab.image --remove
	@rm -rf $(SPARKRIG_CACHE) .venv .collections

# --- The tests ----------------------------------------------------------------------------------------------

# It would find this file by itself, but only in a clone.
MOLECULE := molecule --base-config .config/molecule/config.yml

# On nodes that serve, in this order: the first makes them serve, the last takes everything back.
SERVING := interrupted default refusals changed_plan dead_node faults reset
# The same, but long: speed, Ray and who may join it, no new requests, vLLM's own executor instead of Ray, Ctrl-C in
# every role.
SERVING_LONG := default bench ray_cluster drain executor_mp ctrl_c
# On bare nodes, each of which it leaves bare.
BARE := fabric
BARE_LONG := node runtime reset_halfway checkpoint

.PHONY: test
test: system venv ## The tests, from lint to the molecule scenarios
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target static build
	@$(MAKE) --no-print-directory unit-alone
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target proofs bare
	@# Last and alone, because these measure seconds.
	@$(MAKE) --no-print-directory serving
	@echo "make test: everything passed"

.PHONY: proofs
proofs: venv ## What needs no lab but takes long: the oracle, the gates, the matrix, and a build from source
	@$(MAKE) --no-print-directory oracle
	@$(MAKE) --no-print-directory gates
	@$(MAKE) --no-print-directory matrix
	@$(MAKE) --no-print-directory source

.PHONY: static
static: lint unit unit-slow ## Linters, type checks and unit tests

.PHONY: lint
lint: venv ## Linters and type checks
	ruff check .
	ruff format --check .
	shellcheck lab/system.sh lab/beside.sh .ci/run
	yamllint --strict .
	antsibull-changelog lint
	antsibull-changelog lint-changelog-yaml changelogs/changelog.yaml
	mypy plugins playbooks/callback_plugins $(PYTHON_FOLDERS) $(wildcard molecule/*/tests)
	ansible-lint

# On all processors, but not on more than the memory of a small machine carries.
PARALLEL := --numprocesses auto --maxprocesses 8 --dist worksteal

.PHONY: unit
unit: venv ## Unit tests of the cores, modules and filters: the inner loop
	pytest tests/unit $(PARALLEL) -m "not slow and not alone"

.PHONY: unit-slow
unit-slow: venv ## Unit tests that take seconds each: real playbooks, whole checkpoints
	pytest tests/unit $(PARALLEL) -m "slow and not alone"
	@python -m docs.commands

.PHONY: unit-alone
unit-alone: venv ## Unit tests that measure seconds and bytes
	pytest tests/unit -m alone

.PHONY: reference
reference: venv ## Write the reference of roles, modules and filters
	@python docs/reference.py docs/reference

.PHONY: docs
docs: venv reference ## Build the site under build/site
	@NO_MKDOCS_2_WARNING=1 python -m mkdocs build --quiet --strict
	@echo "build/site/index.html opens as it is; with its search: python3 -m http.server --directory build/site"

.PHONY: gates
gates: venv ## Ansible's own gates on the collection as it is built and installed
	python -m tests.gates.artefact

.PHONY: matrix
matrix: venv ## The oldest and the newest Ansible, and every Python that a node may have
	python -m tests.gates.matrix

.PHONY: changelog
changelog: venv ## Fold the fragments into the changelog, under the version in galaxy.yml
	antsibull-changelog release --update-existing --reload-plugins

.PHONY: release-check
release-check: system venv ## The artefact, installed into an empty place, serves the model on the lab
	@python -m tests.gates.release

.PHONY: build
build: system venv ## Build the node image and the runtime, side by side with nothing served
	@python -m lab.build

.PHONY: oracle
oracle: build ## The fitter side by side with vLLM's own planner and engine
	SPARKRIG_ORACLE_PYTHON="$$(python -m lab.build --oracle)" pytest tests/oracle -m "not slow"

.PHONY: source
source: build ## A runtime from a git source: vLLM's own, patched, built, and carried to a site without a network
	pytest tests/wheels/test_git_source.py -k built_once

.PHONY: wheels
wheels: build ## The patches on vLLM's real wheels and sources, and a runtime built from a git source
	@python -m lab.build --sources
	pytest tests/wheels

.PHONY: oracle-slow
oracle-slow: build ## The rest of the real engines that the fitter is compared with
	SPARKRIG_ORACLE_PYTHON="$$(python -m lab.build --oracle)" pytest tests/oracle -m slow

.PHONY: serving
serving: system venv ## Every molecule scenario on nodes that serve
	@# What molecule remembers of a run that was killed is not what is there.
	@$(MOLECULE) reset --scenario-name default >/dev/null
	$(MOLECULE) test $(addprefix --scenario-name ,$(SERVING))

.PHONY: bare
bare: system venv build ## Every molecule scenario on bare nodes, on a lab beside the first
	@lab/beside.sh bare env MOLECULE_EPHEMERAL_DIRECTORY=$(SPARKRIG_CACHE)/molecule-bare \
	  sh -c '$(MOLECULE) reset --scenario-name default >/dev/null && exec $(MOLECULE) test "$$@"' \
	  molecule $(addprefix --scenario-name ,$(BARE))

.PHONY: long
long: ## What is too long for `make test`: builds from source, and the long scenarios
	@$(MAKE) --no-print-directory wheels
	@$(MAKE) --no-print-directory bare BARE="$(BARE_LONG)"
	@$(MAKE) --no-print-directory serving SERVING="$(SERVING_LONG)"

.PHONY: commands
commands: build ## README and pages, typed in a fresh clone with a lab of its own; ONLY="not performance" leaves out `make bench`
	pytest -v -s tests/commands $(if $(ONLY),-k "$(ONLY)")

.PHONY: faults
faults: demo ## Every fault on a lab that serves, a table of how each one ended, two controllers, Ctrl-C in every role
	SPARKRIG_FAULTS=all pytest -v -s molecule/faults/tests molecule/refusals/tests/test_two_controllers.py \
	  molecule/ctrl_c/tests

.PHONY: bench
bench: build ## Measure everything on a lab of its own, and write docs/performance.md; PART="fit ray" measures these anew
	PYTHONPATH="$(CURDIR)/.collections:$(CURDIR)" python -m tests.bench.performance $(PART)
