# `make demo` and `make test` need nothing but Python >= 3.10: they set up what they use.
SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := .peers/.installed
CSRC := $(shell find csrc tests/cuda_shim -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help setup peers demo docs test quick test-sanitize test-abi lint wheel bench bench-peers gpu gpu-first gpu-rest gpu-test gpu-bench gpu-end-to-end gpu-compare-nuclei gpu-compare-scenes results format clean

help:  ## show this
	@echo "make TARGET [VARIABLE=VALUE ...]"
	@sed -nE 's/^([a-z-]+):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 22
	@printf '  %s\t%s\n' "PYTHON=python3.12" "the interpreter that setup makes .venv with (python3)" \
		"BIN=FOLDER" "the programs python and solo-attn of another environment (.venv/bin)" \
		"DRY_RUN=1" "gpu and its parts: tiny sizes on the CPU, nothing is kept" | expand -t 22

setup: $(STAMP)  ## make the virtual environment, install torch and torchvision, compile and install this package

$(STAMP): pyproject.toml setup.py constraints.txt $(CSRC)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else f"solo-attn needs Python >= 3.10, and $(PYTHON) is {v[0]}.{v[1]}; name another with: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "setuptools>=77" wheel ninja
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[train,pretrained,dev,docs]"
	@touch $@

peers: setup $(PEERS)  ## mmdetection and supervision, for the tests and benchmarks that compare with them

$(PEERS): benchmarks/peers/requirements.txt
	rm -rf .peers
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .peers -r $<
	@# yapf keeps its grammar at its first import: several test processes at once would read half of it.
	$(BIN)/python -c 'import sys; sys.path.append(".peers"); import yapf'
	@touch $@

demo: setup  ## train and compare the paper's three systems on synthetic street scenes, then time the ops
	$(BIN)/solo-attn demo
	$(BIN)/solo-attn bench

# A process with one thread on each core, at most four: the tests are small, and tests of threads ask for them.
# Threads that wait actively starve each other where tests run several processes on few cores.
WORKERS := --numprocesses auto --maxprocesses 4 --dist worksteal
TESTS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest $(WORKERS)
test: setup lint  ## lint, then every test, those of the ops once more in Triton's interpreter
	$(TESTS)
	TRITON_INTERPRET=1 $(TESTS) tests/ops

quick: setup lint  ## lint, a fast core of the tests, and those of what differs from main (a minute, for each commit)
	$(TESTS) -m "not slow" $$($(BIN)/python -m tools.quick)

# Fresh memory comes as NaN, so that reading what nothing was written to shows. Python itself leaks at its end.
SANITIZE := -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined
FILLED := max_malloc_fill_size=1073741824:malloc_fill_byte=255
test-sanitize: setup  ## the C++ kernels under ASan and UBSan, by the tests of the ops on every instruction set (4 minutes)
	SOLO_ATTN_BUILD=cpu CXXFLAGS="$(SANITIZE)" LDFLAGS="-fsanitize=address,undefined" $(BIN)/python setup.py -q build \
		--build-base build/sanitize --build-lib build/sanitize/lib
	cd build/sanitize/lib && OMP_WAIT_POLICY=PASSIVE ASAN_OPTIONS=detect_leaks=0:$(FILLED) \
		UBSAN_OPTIONS=print_stacktrace=1 \
		LD_PRELOAD="$$(for name in asan ubsan stdc++; do $${CXX:-c++} -print-file-name=lib$$name.so; done | xargs)" \
		$(CURDIR)/$(BIN)/python -m pytest -c $(CURDIR)/pyproject.toml $(CURDIR)/tests/ops -q -p no:cacheprovider \
		-k "cpu-cpu and not compile"

test-abi: setup  ## one wheel, built here, by the tests of the ops under the newest torch (gigabytes to download)
	$(BIN)/python -m tools.abi

lint: setup  ## ruff, the type checker, clang-format, and actionlint for .github
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CSRC)
	$(BIN)/actionlint .github/workflows/*.yml

wheel: setup  ## dist/*.whl as a package index takes it: repaired, and checked for size and both stable ABIs
	$(BIN)/python -m tools.wheel build dist
	$(BIN)/python -m tools.wheel check dist/*.whl

bench: setup  ## time every op, store the result, remake tables and plot from it
	$(BIN)/python -m pytest benchmarks/ops -q --timeout 900 --benchmark-columns=rounds --benchmark-json=benchmarks/results/cpu/ops.json
	$(MAKE) --no-print-directory results

bench-peers: peers  ## the same for what is compared with mmdetection
	$(BIN)/python -m pytest benchmarks/peers -q --timeout 900 --benchmark-columns=rounds --benchmark-json=benchmarks/results/cpu/mmdet.json
	$(MAKE) --no-print-directory results

# Each command ends within about 8 minutes. Status 75: more remains, and the same command goes on with it.
DRY := $(if $(DRY_RUN),--dry-run)
END_TO_END := $(BIN)/python -m benchmarks.end_to_end.run $(DRY)
TINY := $(addprefix train.,max_steps=1 batch_size=1 accelerator=cpu precision=32-true) data.workers=0 \
	$(addprefix model.,backbone=resnet18 fpn_channels=32 head_channels=32 num_convs=1 min_size=96 max_size=192)
compare = $(BIN)/solo-attn compare configs/paper_$(1).yaml --forms --minutes 6.5 \
	$(if $(DRY_RUN),$(TINY) --seeds 1 --out runs/dry_run_$(1),--out runs/paper_$(1))
SCENES := $(BIN)/solo-attn scenes data/scenes --train 450 --val 50 --test 100 --size 256 512
FRESH := $(if $(DRY_RUN),rm -rf runs/dry_run_*)
.NOTPARALLEL:
PIECE := || { test $$? = 75 && echo "more remains: once more"; }
PIECES := ; do status=$$?; test $$status = 75 || exit $$status; done

gpu: gpu-test gpu-bench  ## all that a GPU is for: the tests, the speed of the ops, of the model, the paper's tables
	until $(END_TO_END)$(PIECES)
	$(FRESH)
	until $(call compare,nuclei)$(PIECES)
	$(SCENES)
	until $(call compare,scenes)$(PIECES)

gpu-test: setup  ## every op on this machine's GPU; DRY_RUN=1: what a CPU allows of it
	$(BIN)/python tests/gpu/run.py $(DRY)

gpu-bench: setup  ## time every op on this machine's GPU and store it; DRY_RUN=1: go through it on the CPU
	$(BIN)/python -m benchmarks.gpu.ops run $(DRY)

gpu-first: setup  ## a GPU's first nine minutes, the most important first; DRY_RUN=1: through it on the CPU
	$(FRESH)
	$(BIN)/python -m benchmarks.gpu.first run $(DRY) $(PIECE)

gpu-rest: setup  ## one piece of what gpu-first left, and all configurations and batches
	$(BIN)/python -m benchmarks.gpu.first rest $(DRY) $(PIECE)

gpu-end-to-end: setup  ## one piece of timing training and inference, ours and the dense way; DRY_RUN=1 as above
	$(END_TO_END) $(PIECE)

gpu-compare-nuclei: setup  ## one piece of training the paper's systems on nuclei; DRY_RUN=1: a tiny model, a step
	$(FRESH)
	$(call compare,nuclei) $(PIECE)

gpu-compare-scenes: setup  ## the same on synthetic street scenes
	$(FRESH)
	$(SCENES)
	$(call compare,scenes) $(PIECE)

docs: setup  ## build the documentation as a site, build/site/index.html; a broken link is an error
	$(BIN)/zensical build

results: setup  ## write benchmarks/results and the settings into README and docs; propose the order of backends
	$(BIN)/python -m benchmarks.report.pages
	$(BIN)/python -m benchmarks.report.backend_order

format: setup  ## let ruff and clang-format rewrite what they can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC)

clean:  ## remove what the build and the tools left
	rm -rf $(STAMP) .peers build dist *.egg-info solo_attn/_C.* solo_attn/_build.json .pytest_cache .mypy_cache .ruff_cache
