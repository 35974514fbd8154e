# Two commands: `make demo` and `make test`. Each sets up .venv by itself. PIP_ARGS is handed to every pip that installs:
# '-c constraints.txt' takes the versions of the release, an index of PyTorch's for CPUs spares the CUDA libraries.
# PYTEST_ARGS is handed to pytest.
PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
STUDY_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo transfer-study site test test-slow test-cluster lint reference constraints dist clean

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "headspark needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --upgrade pip
	@echo "installing headspark and its libraries (with CUDA about 6 GB, a few minutes) ..."
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m finetune.demo --out demo

# Does pretraining help? Hours; the same command goes on. STUDY_ARGS is handed to it: --full, --out, --config ...
transfer-study: $(STAMP)
	$(BIN)/python -m finetune.cli study $(STUDY_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

test: lint
	$(PYTEST) -m "not cluster and not slow"

# What `make test` leaves out to stay short; before a release.
test-slow: $(STAMP)
	$(PYTEST) -m "slow and not cluster"

# The batch scripts on a SLURM of two nodes on this machine, one job after the other; skipped where there is none.
test-cluster: $(STAMP)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --editable '.[cluster]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m "cluster and not slow" tests/cluster

# docs/api.md, docs/keys.md, docs/recipes.md and the rooms in docs/architecture.md.
reference: $(STAMP)
	$(BIN)/python .ci/reference.py

# Before a release, once the tests have passed: all extras are installed beside what is there.
constraints: $(STAMP)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --editable '.[dev,brain,cluster,docs,kaggle]'
	$(BIN)/python .ci/constraints.py

# docs/ as pages that a browser opens from the disk: site/index.html. Broken links end it.
$(STAMP)-docs: $(STAMP)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --editable '.[docs]'
	@touch $@

site: $(STAMP)-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "the site: site/index.html"

# Wheel and sdist; the version is that of the newest tag, and what lies behind it.
dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m hatchling build

clean:
	rm -rf $(VENV) demo study site dist
