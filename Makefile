# Two commands do everything on a fresh machine with Python ≥ 3.11, pip and make:  make demo  ·  make test

PYTHON ?= python3
export PYTHONDONTWRITEBYTECODE :=
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export HF_HUB_OFFLINE ?= 1
export OMP_NUM_THREADS ?= 1
BIN := .venv/bin
TORCH := 2.13.0

.PHONY: demo test long lint types fast proofs docs lock clean

demo: .venv/ready  ## train the teacher, compare five ways over three seeds, write the report, export the winner
	$(BIN)/stillroom compare kd nkd_uskd dho:lr=0.01 ssld --seeds 3 --budget 600 --out demo
	$(BIN)/stillroom export demo/winner --onnx
	@echo "The report: demo/report.html"

test: .venv/dev lint types  ## lint, types and every test but the proofs that take longest
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not long"

long: .venv/dev  ## the proofs and tests that take more than fifteen seconds each
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m long

fast: .venv/dev  ## the tests that need no whole trial
	$(BIN)/python -m pytest -n 2 -m "not slow"

lint: .venv/dev
	$(BIN)/ruff check .

types: .venv/dev
	$(BIN)/mypy

proofs: .venv/dev  ## measure every proof again
	$(BIN)/stillroom prove $$($(BIN)/stillroom list --names) --seeds 3

docs: .venv/ready  ## one page per recipe from its card, its source and its proof
	$(BIN)/python docs/build.py

lock: .venv/uv  ## renew the lock file
	$(BIN)/uv pip compile -q pyproject.toml --extra dev -c torch.constraint --no-emit-package torch --no-emit-package stillroom --generate-hashes -o ci.lock
	$(BIN)/uv pip compile -q pyproject.toml --extra export -c torch.constraint --no-emit-package torch --no-emit-package stillroom --generate-hashes -o run.lock

.venv/uv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stillroom needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv==0.13.8
	$(BIN)/uv pip install --quiet --python $(BIN)/python torch==$(TORCH)
	touch $@

.venv/ready: .venv/uv run.lock pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r run.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

.venv/dev: .venv/uv ci.lock pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r ci.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@ .venv/ready

clean:
	rm -rf .venv demo build *.egg-info .pytest_cache .ruff_cache .mypy_cache
