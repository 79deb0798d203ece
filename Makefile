# On a fresh machine: `make train`, then `make test`. Each target makes what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The newest JAX wants a newer Python than the default one; the first of these that works.
NEWEST ?= python3.13 python3.12 $(HOME)/.pyenv/versions/3.13*/bin/python $(HOME)/.pyenv/versions/3.12*/bin/python
PRESET ?= garg/linear-xs
GPU_PYTHON ?= $(PYTHON)

.PHONY: setup train weights test test-newest test-gpu lint format docs dist dist-check bench bench-quick \
  check-gpu-code gpu-day gpu-day-wheels gpu-day-rehearsal clean

setup: $(READY)

$(READY): setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

train: $(READY)
	$(BIN)/icl train $(PRESET)

# Makes the weights in the package again, in about 40 minutes of CPU time. Goes on with runs that
# were stopped; delete runs/weights-* to train anew.
WEIGHTS := icl/sklearn/weights
define made_weights
	if [ -d runs/weights-$(1) ]; then $(BIN)/icl train --resume runs/weights-$(1) --no-evaluate; \
	else $(BIN)/icl train $(2) --run-dir=runs/weights-$(1) --no-evaluate; fi
	$(BIN)/icl export runs/weights-$(1) $(WEIGHTS)/$(1).npz --precision float16 --overwrite
endef

weights: $(READY)
	$(call made_weights,classes,pfn/tables-xs)
	$(call made_weights,numbers,pfn/regression-xs)

test: $(READY)
	$(BIN)/python -m pytest

test-newest:
	@found=; for p in $(NEWEST); do if "$$p" -c 'import venv' 2>/dev/null; then found="$$p"; break; fi; done; \
	if [ -z "$$found" ]; then echo "no Python 3.12 or newer found; set NEWEST=/path/to/python"; exit 1; fi; \
	echo "testing with $$found"; $(MAKE) test PYTHON="$$found" VENV=.venv-newest

# On a machine with a GPU whose Python has jax, triton, jax-triton, flax, pytest and hypothesis.
test-gpu:
	ICL_TEST_DEVICE=gpu PYTHONPATH=. $(GPU_PYTHON) -m pytest -n 0 tests/kernels $(TEST_FLAGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Pages and API as a site that needs no network: open site/index.html. The search needs a server, such
# as `python -m http.server --directory site`.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The wheel is made from the sdist, so that both are complete.
dist: $(READY)
	rm -rf dist
	$(BIN)/python -c "from setuptools import build_meta; build_meta.build_sdist('dist')"
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz

# Installs the wheel as a user does, into an environment with nothing else, and trains elsewhere.
dist-check: dist
	rm -rf .venv-dist
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet "$$(ls dist/*.whl)[train]"
	folder=$$(mktemp -d) && cd $$folder && $(CURDIR)/.venv-dist/bin/icl list garg/linear && \
	  $(CURDIR)/.venv-dist/bin/icl train garg/linear-xs --training.steps 20 \
	  --optimizer.warmup-steps 2 && rm -r $$folder

# What is compared with needs PyTorch, which the library never does.
PEERS := $(VENV)/.peers
$(PEERS): $(READY) bench/requirements.txt
	$(BIN)/python -m pip install --quiet --requirement bench/requirements.txt
	touch $@

bench: $(PEERS)
	$(BIN)/python -m bench $(BENCH_FLAGS)

bench-quick: $(PEERS)
	$(BIN)/python -m bench --quick $(BENCH_FLAGS)

# An environment of its own keeps jax-triton and JAX's CUDA plugin out of the tests'.
check-gpu-code:
	$(MAKE) setup VENV=.venv-gpu-code
	.venv-gpu-code/bin/python -m pip install --quiet --requirement bench/requirements-gpu-code.txt
	.venv-gpu-code/bin/python -m pip install --quiet --no-deps \
	  jax-cuda12-plugin==$$(.venv-gpu-code/bin/python -c 'import jax; print(jax.__version__)')
	.venv-gpu-code/bin/python -m bench gpu-code $(CHECK_FLAGS)

# What only a GPU can tell, on a machine with a GPU and no network: docs/gpu-day.md.
gpu-day:
	PYTHONPATH=. $(GPU_PYTHON) -m bench gpu-day $(GPU_DAY_FLAGS)

# pip takes wheels of exactly the platforms that are named.
GPU_DAY_PLATFORMS := manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64
gpu-day-wheels: $(READY)
	rm -rf .whl
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --dest .whl \
	  --python-version 3.12 --implementation cp $(GPU_DAY_PLATFORMS:%=--platform %) \
	  --requirement bench/requirements-gpu-day.txt
	$(BIN)/python -m bench gpu-imports --wheels .whl

gpu-day-rehearsal: $(READY)
	rm -rf build/gpu-day-rehearsal
	$(BIN)/python -m bench gpu-day --rehearsal --out build/gpu-day-rehearsal

clean:
	rm -rf $(VENV) .venv-newest .venv-gpu-code .venv-dist build dist site *.egg-info .pytest_cache \
	  .ruff_cache .hypothesis
