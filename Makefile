# Every target sets itself up: .venv, torch, this package and what the target needs. Nothing is installed outside .venv.
#
#   make demo     train an agent with GRPO and with GiGPO on this machine; writes curves and numbers
#   make test     the whole test suite
#   make test-torch    the same without the compiled library, as on a machine without a compiler (slow tests left out)
#   make test-matrix   a part of it in the oldest and newest versions of Python and torch that are at hand (5 GiB an environment)
#   make test-frameworks   tests with trainers' real packages, each in an environment of its own (.venv-trl, .venv-verl)
#   make bench    benchmarks against torch and other libraries on the CPU (ten to fifteen minutes); prints the ratios, writes bench/records
#   make bench-gpu     on a GPU machine: every kernel proved right, then timed; writes bench/records
#   make bench-plots   pictures of the records
#   make doctor   which path every operation takes here, and a comparison of each with the reference
#   make lint     ruff
#   make check-cuda    compile the CUDA kernels for sm_80, sm_90 and sm_100 (needs nvcc, no GPU)
#   make clean    remove .venv and everything that was built
#
# Variables: PY=python3.12          the Python that .venv is made from
#            TORCH='torch>=2.11'    another torch than the version this release was tested with (after: make clean)
#            TORCH_INDEX=URL        where pip finds torch, for example PyTorch's index of CPU wheels
#            GIGPO_EXT=auto|off|cpu|cuda   which native libraries to build (auto: what can be built)
#            PYTEST_ARGS='-k loss'  more arguments for pytest
#            CELLS='floor newest'   some cells of test-matrix (python3 scripts/matrix.py --list)
#            BENCH_ARGS='--steps timings'  arguments for bench-gpu
#            DEMO_ARGS='--quick'    more arguments for examples/demo.py

PY          ?= python3
TORCH       ?= torch==2.13.0
TORCH_INDEX ?=
GIGPO_EXT   ?= auto
PYTEST_ARGS ?=
CELLS       ?=
export TORCH_INDEX GIGPO_EXT

BIN          := .venv/bin
PIP          := $(BIN)/python -m pip --disable-pip-version-check
BUILD_INPUTS := setup.py pyproject.toml $(wildcard csrc/*)

.PHONY: help demo test test-torch test-matrix test-frameworks test-trl test-verl bench bench-gpu bench-plots doctor lint check-cuda clean
.DELETE_ON_ERROR:

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

demo: .venv/.ready-demo
	$(BIN)/python examples/demo.py $(DEMO_ARGS)

test: .venv/.ready-test
	$(BIN)/pytest -n auto $(PYTEST_ARGS)

# Where the library takes no part: Triton, building, benchmarks, the tree itself.
NO_LIBRARY := kernels_*.py bench*.py packaging.py preflight.py matrix.py layout.py api.py anchor_cuda.py anchor_hash.py anchor_sanitizers.py rows_portable.py

# In a copy of the tree, where nothing was compiled: what the tests start as processes of their own sees no library either.
test-torch: .venv/.ready-test
	$(BIN)/python scripts/tree.py build/without-library
	cd build/without-library && PYTHONPATH="$$PWD" ../../$(BIN)/python -m gigpo_fast doctor --native
	cd build/without-library && PYTHONPATH="$$PWD" ../../$(BIN)/pytest -n auto -m "not slow" $(patsubst %,--ignore-glob='*/test_%',$(NO_LIBRARY)) $(PYTEST_ARGS)

# Each cell makes its own environment, with the Python that it names.
test-matrix:
	$(PY) scripts/matrix.py $(CELLS)

test-frameworks: test-trl test-verl

test-trl test-verl: test-%: .venv-%/.ready
	OMP_NUM_THREADS=1 .venv-$*/bin/pytest $(wildcard tests/frameworks/test_$(*)*.py) $(PYTEST_ARGS)

bench: .venv/.ready-bench
	$(BIN)/pytest bench --benchmark-only --benchmark-columns=median,iqr,rounds -q --record bench/records/cpu.csv $(PYTEST_ARGS)

# Asked before the rest is installed: a machine without a GPU learns of it early.
bench-gpu: .venv/.torch
	$(BIN)/python -m bench.gpu --check
	$(MAKE) .venv/.ready-dev
	$(BIN)/python -m bench.gpu $(BENCH_ARGS)

bench-plots: .venv/.ready-bench
	$(BIN)/python -m bench.plots

doctor: .venv/.ready-triton
	$(BIN)/python -m gigpo_fast doctor --selftest

lint: .venv/.lint
	$(BIN)/ruff check .

# nvcc needs no GPU to compile, and torch's stable headers come with a CPU torch too: real errors without the hardware.
check-cuda: .venv/.torch
	mkdir -p build
	nvcc -c -O3 -std=c++17 -DUSE_CUDA -DTORCH_TARGET_VERSION=0x020b000000000000 $(foreach cc,80 90 100,-gencode=arch=compute_$(cc),code=sm_$(cc)) \
	  -I"$$($(BIN)/python -c 'import torch.utils.cpp_extension as e; print(e.include_paths()[0])')" csrc/anchor_cuda.cu -o build/anchor_cuda.o

clean:
	rm -rf .venv .venv-trl .venv-verl build dist demo_out papers_out *.egg-info gigpo_fast/*.so

.venv/.made:
	@sh scripts/preflight.sh "$(PY)"
	$(PY) -m venv .venv
	touch $@

.venv/.lint: .venv/.made
	$(PIP) install ruff
	touch $@

# torch first and alone: the C++ is compiled against the torch that is there, so it must be there when the package is built.
.venv/.torch: .venv/.made
	$(PIP) install $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") "$(TORCH)"
	$(PIP) install "setuptools>=77" ninja
	touch $@

# One stamp for each set of extras in pyproject.toml. Editing csrc/ rebuilds the libraries; editing Python needs nothing.
.venv/.ready-%: .venv/.torch $(BUILD_INPUTS)
	$(PIP) install --no-build-isolation -e ".[$*]"
	@$(BIN)/python -m gigpo_fast doctor --native
	touch $@

# Trainers pin packages against each other's wishes, so each has an environment of its own. torch first, as above.
.venv-trl/.ready .venv-verl/.ready: .venv-%/.ready: $(BUILD_INPUTS)
	@sh scripts/preflight.sh "$(PY)"
	$(PY) -m venv .venv-$*
	.venv-$*/bin/pip --disable-pip-version-check install $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") "$(TORCH)"
	.venv-$*/bin/pip --disable-pip-version-check install "setuptools>=77" ninja "pytest>=8" hypothesis peft
	.venv-$*/bin/pip --disable-pip-version-check install --no-build-isolation -e ".[$*]"
	touch $@
