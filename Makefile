# Each verb sets up what it needs in .venv, from a fresh clone; nothing has to be activated.
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= python3
# All versions are those of constraints.txt, for everybody the same. NEWEST=1 takes the newest of all
# but torch instead, in an environment of its own that is made anew each time.
NEWEST ?=
# For another: make test TORCH='torch==2.13.0 --index-url ...'
TORCH ?= $(shell grep '^torch==' constraints.txt)
# The demo's photo; the one that comes with scikit-image unless given.
PHOTO ?=
# More for pytest, such as OPTIONS='-k prune'.
OPTIONS ?=

# Of the GPU machine that gpu-bundle prepares for; its Python is PYTHON.
GPU_VERSIONS ?= torch==2.11.0 triton==3.6.0 transformers==5.17.0

VENV := $(if $(NEWEST),.venv-newest,.venv)
VLLM := .venv-vllm
LMMS_EVAL := .venv-lmms-eval
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PINNED := $(PIP) install --constraint $(VENV)/constraints.txt
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile $(OPTIONS)
BUNDLED_PHOTO := import pathlib, skimage; print(pathlib.Path(skimage.__file__).parent / "data/coffee.png")

.PHONY: help demo test test-all test-vllm test-lmms-eval lint docs bench bench-vllm native sanitize \
  headers wheel gpu-bundle renew matrix clean FORCE

help:
	@echo 'make demo    prune a photo, leaving pictures in demo/ (PHOTO=... for your own), and ask a model'
	@echo 'make test    run the tests that take little time (NEWEST=1 on the newest of what they need)'
	@echo 'make test-all  run all tests'
	@echo 'make test-vllm  run the tests on a vLLM for the CPU, in an environment of its own (3.5 GB)'
	@echo 'make test-lmms-eval  run the tests on an lmms-eval, in an environment of its own (1.8 GB)'
	@echo 'make lint    check style, types and workflows'
	@echo 'make docs    build the site into site/; a broken link is an error'
	@echo 'make bench   run the benchmarks: about ten minutes on two cores'
	@echo 'make bench-vllm  requests a second of a tiny model on that vLLM (docs/serving.md)'
	@echo 'make native  build the native objects; needs a C++ compiler'
	@echo 'make sanitize  check the C++ and CUDA kernels on random shapes, under sanitizers'
	@echo 'make headers fetch those of the oldest torch, for tests that compile beside them'
	@echo 'make wheel   build the source distribution and a wheel into dist/ (docs/releasing.md)'
	@echo 'make gpu-bundle  prepare what bench/gpu_check.sh takes along to a GPU (docs/gpu.md)'
	@echo 'make renew   write the newest versions into constraints.txt'
	@echo 'make matrix  try the oldest and newest Python, torch, Triton and transformers'
	@echo 'make clean   remove the environments and everything built'

demo: $(VENV)/.extra-demo
	@$(BIN)/python -m ocvtp_kernels.cli prune \
	  "$(or $(PHOTO),$$($(BIN)/python -c '$(BUNDLED_PHOTO)'))" --output demo
	@$(BIN)/python examples/llava.py

test: $(VENV)/.extra-test
	$(PYTEST) -m 'not slow'

# By name, as files of few tests take longest: xdist would begin them last.
test-all: $(VENV)/.extra-test
	$(PYTEST) --no-loadscope-reorder

test-vllm: $(VLLM)/.ready
	$(VLLM)/bin/python -m pytest -n 2 --dist loadfile $(OPTIONS) tests/serving/vllm

test-lmms-eval: $(LMMS_EVAL)/.ready
	$(LMMS_EVAL)/bin/python -m pytest $(OPTIONS) tests/evaluation/lmms_eval

lint: $(VENV)/.extra-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu*')
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/mypy

# DOCS_REPO_URL and DOCS_SITE_URL say where source and site will be, if they are known.
docs: $(VENV)/.extra-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.extra-test
	$(BIN)/python -m pytest bench
	set -e; for suite in prune compile ops usage host processes selectors e2e attach merging; do \
	  $(BIN)/python -m bench run --suite $$suite; done
	$(BIN)/python -m bench report

# Of another model, on a GPU: see docs/serving.md.
bench-vllm: $(VLLM)/.ready
	$(VLLM)/bin/python -m bench serving $(OPTIONS)

# Never skipped: whoever asks for the native objects gets them, or an error.
native: $(VENV)/.tools
	OCVTP_NATIVE=1 $(PINNED) --no-build-isolation -e '.[native]'
	$(BIN)/ocvtp doctor

# AddressSanitizer and UndefinedBehaviorSanitizer over the CPU kernels and the emulated CUDA kernels.
sanitize: $(VENV)/.extra-test
	$(BIN)/python -m tests.sanitized tests/csrc tests/ops/test_emulated_cuda.py \
	  --shapes 2000 $(OPTIONS)

headers: $(VENV)/.tools
	$(BIN)/python scripts/torch_headers.py

# As it will be published, but for the compiler and the glibc of this machine (docs/releasing.md).
wheel: headers
	$(PINNED) build
	OCVTP_NATIVE=1 OCVTP_TORCH=$(CURDIR)/build/oldest_torch/torch CUDACXX=/nonexistent $(BIN)/python -m build

# In an environment of its own: the GPU machine has other versions.
gpu-bundle:
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip --disable-pip-version-check --quiet install $(GPU_VERSIONS) \
	  'setuptools>=77' 'setuptools-scm>=8' ninja 'cmake>=3.20' pytest pytest-xdist hypothesis 'pybind11>=3'
	OCVTP_NATIVE=0 .venv-gpu/bin/python -m pip --disable-pip-version-check --quiet install \
	  --no-build-isolation '.[vlm,train,triton]'
	.venv-gpu/bin/python -m bench.gpu_check.bundle $(OPTIONS)

# The newest versions of everything, beside TORCH; then try them: make test-all, make matrix.
renew: $(VENV)/.tools
	$(PIP) install uv
	$(BIN)/python scripts/constraints.py renew '$(TORCH)'

matrix:
	$(PYTHON) scripts/matrix.py $(OPTIONS)

$(VLLM)/.ready: scripts/vllm_cpu.py scripts/environment.py
	$(PYTHON) scripts/vllm_cpu.py $(VLLM)
	@touch $@

$(LMMS_EVAL)/.ready: scripts/lmms_eval_env.py scripts/environment.py
	$(PYTHON) scripts/lmms_eval_env.py $(LMMS_EVAL)
	@touch $@

# .venv/.extra-test stands for '.[test]' being installed, and so on.
$(VENV)/.extra-%: $(VENV)/.tools pyproject.toml setup.py
	$(PINNED) --no-build-isolation -e '.[$*]'
	@touch $@

# What the build requires, as --no-build-isolation leaves it to us.
$(VENV)/.tools: Makefile constraints.txt scripts/constraints.py $(if $(NEWEST),FORCE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(if $(NEWEST),--clear) $(VENV)
	$(PIP) install $(TORCH)
	$(if $(NEWEST),:,$(BIN)/python scripts/constraints.py beside-torch) >$(VENV)/constraints.txt
	$(PINNED) 'setuptools>=77' 'setuptools-scm>=8' ninja 'cmake>=3.20'
	@touch $@

clean:
	rm -rf .venv .venv-newest .venv-gpu .venv-vllm .venv-lmms-eval .gpu build demo dist site *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -f ocvtp_kernels/*.so ocvtp_kernels/*.so.new ocvtp_kernels/why_not_native.json*
