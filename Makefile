# Each verb sets up what it needs in .venv, from a fresh clone; nothing has to be activated.
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= python3
# One known build for everybody. For another: make test TORCH='torch --index-url ...'
TORCH ?= torch==2.13.0
# The demo's photo; the one that comes with scikit-image unless given.
PHOTO ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
BUNDLED_PHOTO := import pathlib, skimage; print(pathlib.Path(skimage.__file__).parent / "data/coffee.png")

.PHONY: help demo test lint bench native sanitize clean

help:
	@echo 'make demo    prune a photo, leaving pictures in demo/ (PHOTO=... for your own)'
	@echo 'make test    run the tests'
	@echo 'make lint    check style and types'
	@echo 'make bench   run the benchmarks'
	@echo 'make native  build the native objects; needs a C++ compiler'
	@echo 'make sanitize  check the C++ on random shapes, under sanitizers'
	@echo 'make clean   remove .venv and everything built'

demo: .venv/.extra-demo
	@$(BIN)/python -m ocvtp_kernels.cli prune \
	  "$(or $(PHOTO),$$($(BIN)/python -c '$(BUNDLED_PHOTO)'))" --output demo

test: .venv/.extra-test
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/.extra-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu*')
	$(BIN)/mypy

bench: .venv/.extra-test
	$(BIN)/python -m pytest bench
	$(BIN)/python -m bench.run micro
	$(BIN)/python -m bench.run e2e
	$(BIN)/python -m bench.run selectors
	$(BIN)/python -m bench.attach_overhead

# Never skipped: whoever asks for the native objects gets them, or an error.
native: .venv/.tools
	OCVTP_NATIVE=1 $(PIP) install --no-build-isolation -e '.[native]'
	$(BIN)/ocvtp doctor

# AddressSanitizer and UndefinedBehaviorSanitizer over all C++ tests.
sanitize: .venv/.tools
	$(BIN)/cmake -S . -B build/tests-sanitized -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	  -DOCVTP_TESTS=ON -DOCVTP_SANITIZE=address,undefined -DOCVTP_FUZZ_SHAPES=2000
	$(BIN)/cmake --build build/tests-sanitized
	$(BIN)/ctest --test-dir build/tests-sanitized --output-on-failure --parallel 2

# .venv/.extra-test stands for '.[test]' being installed, and so on.
.venv/.extra-%: .venv/.tools pyproject.toml setup.py
	$(PIP) install --no-build-isolation -e '.[$*]'
	@touch $@

# What pyproject.toml requires of a build, as --no-build-isolation leaves it to us.
.venv/.tools: Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(PIP) install $(TORCH)
	$(PIP) install 'setuptools>=77' ninja 'cmake>=3.20'
	@touch $@

clean:
	rm -rf .venv build demo *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -f ocvtp_kernels/*.so ocvtp_kernels/*.so.new
