# `make demo` and `make test` do all the set-up: an environment from the lock file, with hashes.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python)
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
OUT    ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test check env lock clean

demo: $(READY)            ## four simulated sites on Fashion-MNIST, end to end
	$(BIN)/secure-triplay simulate configs/demo.yaml --out $(OUT)

test: check               ## lint, types, layering and every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --no-loadscope-reorder

check: $(READY)           ## all of `make test` but its tests, for before a commit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

env: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Python 3.11 is needed; name it with make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)  # an environment that is there gets only what it lacks
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

lock:                     ## resolve the dependencies again; needs uv
	uv pip compile --quiet pyproject.toml --extra dev --python-version 3.11 --generate-hashes --no-header \
	  --no-annotate --output-file requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info
