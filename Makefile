# `make demo` and `make test` need nothing but Python >= 3.10: they set up what they use.
SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := .peers/.installed
CSRC := $(shell find csrc tests/cuda_shim -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help setup peers demo test gpu-test lint bench bench-peers gpu-bench results format clean

help:  ## show these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP)  ## make the virtual environment, install torch and torchvision, compile and install this package

$(STAMP): pyproject.toml setup.py constraints.txt $(CSRC)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else f"solo-attn needs Python >= 3.10, and $(PYTHON) is {v[0]}.{v[1]}; name another with: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "setuptools>=77" wheel ninja
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[train,dev]"
	@touch $@

peers: setup $(PEERS)  ## mmdetection and supervision, for the tests and benchmarks that compare with them

$(PEERS): benchmarks/peers.txt
	rm -rf .peers
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .peers -r $<
	@touch $@

demo: setup  ## train and compare the paper's three systems on synthetic street scenes, then time the ops
	$(BIN)/solo-attn demo
	$(BIN)/solo-attn bench

# Threads that wait actively starve each other where tests run several processes on few cores.
test: setup lint  ## lint, then every test, those of the ops once more in Triton's interpreter
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest
	OMP_WAIT_POLICY=PASSIVE TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/ops

gpu-test: setup  ## every op on this machine's GPU; DRY_RUN=1: what a CPU allows of it
	$(BIN)/python tests/gpu/run.py $(if $(DRY_RUN),--dry-run)

lint: setup  ## ruff, the type checker, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CSRC)

bench: setup  ## time every op, store the result, remake the README's table and plot from it
	$(BIN)/python -m pytest benchmarks --ignore=benchmarks/bench_mmdet.py -q --timeout 900 --benchmark-columns=rounds --benchmark-json=benchmarks/results/cpu/ops.json
	$(BIN)/python benchmarks/readme.py

bench-peers: peers  ## the same for what is compared with mmdetection
	$(BIN)/python -m pytest benchmarks/bench_mmdet.py -q --timeout 900 --benchmark-columns=rounds --benchmark-json=benchmarks/results/cpu/mmdet.json
	$(BIN)/python benchmarks/readme.py

results: setup  ## write benchmarks/results into the README
	$(BIN)/python benchmarks/readme.py

format: setup  ## let ruff and clang-format rewrite what they can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC)

clean:  ## remove what the build and the tools left
	rm -rf $(STAMP) .peers build dist *.egg-info solo_attn/_C.* solo_attn/_build.json .pytest_cache .mypy_cache .ruff_cache
