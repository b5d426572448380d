# `make demo` and `make test` need only Python >= 3.10: they install everything else.
SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STAMP := $(VENV)/.installed
PEERS := .peers/.installed
CSRC := $(shell find csrc tests/cuda_shim -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help setup peers demo docs test fuzz kill-test quick test-sanitize test-abi test-arm64 lint wheel bench bench-peers bench-scale gpu gpu-first gpu-rest gpu-test gpu-bench gpu-end-to-end gpu-compare-nuclei gpu-compare-scenes results format clean

help:  ## show this list
	@echo "make TARGET [VARIABLE=VALUE ...]"
	@sed -nE 's/^([a-z0-9-]+):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 22
	@printf '  %s\t%s\n' "PYTHON=python3.12" "the interpreter that setup creates .venv with (python3)" \
		"BIN=FOLDER" "the folder of python and solo-attn in another environment (.venv/bin)" \
		"MINUTES=10" "the minutes of fuzz (10)" \
		"KILLS=200" "the number of kills of kill-test (200)" \
		"DRY_RUN=1" "for bench-scale, gpu and its parts: tiny sizes on the CPU, no result is stored" | expand -t 22

setup: $(STAMP)  ## create .venv, install torch and torchvision, compile and install this package

$(STAMP): pyproject.toml setup.py constraints.txt $(CSRC)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else f"solo-attn needs Python >= 3.10, and $(PYTHON) is {v[0]}.{v[1]}; name another with: make PYTHON=python3.11 ...")'
	@echo "setup 1/4: a virtual environment in $(VENV) (seconds)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setup 2/4: pip installs the tools of the build (seconds)"
	@$(PIP) "setuptools>=77" wheel ninja
	@echo "setup 3/4: pip installs torch and torchvision (minutes: gigabytes are downloaded and unpacked)"
	@$(PIP) -c constraints.txt torch torchvision
	@echo "setup 4/4: pip compiles and installs solo-attn, with what training, tests and docs need (minutes)"
	@$(PIP) -c constraints.txt --no-build-isolation -e ".[train,pretrained,dev,docs]"
	@touch $@

peers: setup $(PEERS)  ## install mmdetection and supervision, for the tests and benchmarks that compare with them

$(PEERS): benchmarks/peers/requirements.txt
	@echo "peers: pip installs mmdetection, supervision and what they import in .peers (a minute or two)"
	@rm -rf .peers
	@$(PIP) --no-deps --target .peers -r $<
	@# yapf caches its grammar at its first import: several test processes at once would read half a file.
	@$(BIN)/python -c 'import sys; sys.path.append(".peers"); import yapf'
	@touch $@

demo: setup  ## train and compare the paper's three systems on synthetic street scenes, then time the ops
	$(BIN)/solo-attn demo
	$(BIN)/solo-attn bench

# One process per core, at most four, each with one thread: the tests are small, and tests of threads set their number.
# Passive waiting, since busy-waiting threads of several processes slow each other down on few cores.
WORKERS := --numprocesses auto --maxprocesses 4 --dist worksteal
TESTS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest $(WORKERS)
test: setup lint  ## lint, then every test, those of the ops again in Triton's interpreter, and a minute of fuzzing
	$(TESTS)
	TRITON_INTERPRET=1 $(TESTS) tests/ops
	printf '%s\n' 0 1000000 | OMP_NUM_THREADS=1 xargs -P 2 -I SEED $(BIN)/python -m tools.fuzz --seconds 30 --seed SEED

MINUTES := 10
fuzz: setup  ## random files, command lines and arguments of the ops for MINUTES; prints each failure's seed
	$(BIN)/python -m tools.fuzz --seconds $$(( 60 * $(MINUTES) )) --seed $$RANDOM$$RANDOM

KILLS := 200
kill-test: setup  ## kill train, compare, convert, predict and eval KILLS times, resume, compare bitwise
	$(BIN)/python -m tools.kill_test --kills $(KILLS)

quick: setup lint  ## before each commit: lint, a fast core of the tests, and the tests of files that differ from main
	$(TESTS) -m "not slow" $$($(BIN)/python -m tools.quick)

# New memory is filled with NaN, so that reads of unwritten memory show. Leaks are ignored, since Python itself leaks at exit.
SANITIZE := -O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined
FILLED := max_malloc_fill_size=1073741824:malloc_fill_byte=255
test-sanitize: setup  ## run the tests of the C++ kernels under ASan and UBSan, on every instruction set (4 minutes)
	SOLO_ATTN_BUILD=cpu CXXFLAGS="$(SANITIZE)" LDFLAGS="-fsanitize=address,undefined" $(BIN)/python setup.py -q build \
		--build-base build/sanitize --build-lib build/sanitize/lib
	cd build/sanitize/lib && OMP_WAIT_POLICY=PASSIVE ASAN_OPTIONS=detect_leaks=0:$(FILLED) \
		UBSAN_OPTIONS=print_stacktrace=1 \
		LD_PRELOAD="$$(for name in asan ubsan stdc++; do $${CXX:-c++} -print-file-name=lib$$name.so; done | xargs)" \
		$(CURDIR)/$(BIN)/python -m pytest -c $(CURDIR)/pyproject.toml $(CURDIR)/tests/ops -q -p no:cacheprovider \
		-k "(cpu-cpu or large_results) and not compile"

test-abi: setup  ## build a wheel, and run the tests of the ops on it with the newest torch (downloads gigabytes)
	$(BIN)/python -m tools.abi

test-arm64: setup  ## cross-compile the C++ kernels for ARM64 and run their tests in QEMU (downloads gigabytes)
	$(BIN)/python -m tools.arm64

lint: setup  ## run ruff, mypy, clang-format, and actionlint for .github
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CSRC)
	$(BIN)/actionlint .github/workflows/*.yml

wheel: setup  ## build dist/*.whl for a package index: repaired, and checked for size and both stable ABIs
	$(BIN)/python -m tools.wheel build dist
	$(BIN)/python -m tools.wheel check dist/*.whl

bench: setup  ## time every op, store the result, and rewrite tables and plot
	$(BIN)/python -m pytest benchmarks/ops -q --timeout 900 --benchmark-columns=rounds --benchmark-json=benchmarks/results/cpu/ops.json
	$(MAKE) --no-print-directory results

bench-peers: peers  ## the same for the comparison with mmdetection
	$(BIN)/python -m pytest benchmarks/peers -q --timeout 900 --benchmark-columns=rounds --benchmark-json=benchmarks/results/cpu/mmdet.json
	$(MAKE) --no-print-directory results

bench-scale: peers  ## time and peak memory over masks, image, batch, candidates and objects; DRY_RUN=1: tiny sizes
	$(BIN)/python -m benchmarks.end_to_end.scale $(if $(DRY_RUN),--dry-run)
	$(if $(DRY_RUN),,$(MAKE) --no-print-directory results)

# Each command ends within about 8 minutes. Exit status 75: more remains, and the same command continues.
DRY := $(if $(DRY_RUN),--dry-run)
END_TO_END := $(BIN)/python -m benchmarks.end_to_end.run $(DRY)
TINY := $(addprefix train.,max_steps=1 batch_size=1 accelerator=cpu precision=32-true) data.workers=0 \
	$(addprefix model.,backbone=resnet18 fpn_channels=32 head_channels=32 num_convs=1 min_size=96 max_size=192)
compare = $(BIN)/solo-attn compare configs/paper_$(1).yaml --forms --minutes 6.5 \
	$(if $(DRY_RUN),$(TINY) --seeds 1 --out runs/dry_run_$(1),--out runs/paper_$(1))
SCENES := $(BIN)/solo-attn scenes data/scenes --train 450 --val 50 --test 100 --size 256 512
FRESH := $(if $(DRY_RUN),rm -rf runs/dry_run_*)
.NOTPARALLEL:
PIECE := || { test $$? = 75 && echo "more remains: run it again"; }
PIECES := ; do status=$$?; test $$status = 75 || exit $$status; done

gpu: gpu-test gpu-bench  ## everything that needs a GPU: tests, speed of the ops and of the model, the paper's tables
	until $(END_TO_END)$(PIECES)
	$(FRESH)
	until $(call compare,nuclei)$(PIECES)
	$(SCENES)
	until $(call compare,scenes)$(PIECES)

gpu-test: setup  ## test every op on this machine's GPU; DRY_RUN=1: the parts that a CPU can run
	$(BIN)/python tests/gpu/run.py $(DRY)

gpu-bench: setup  ## time every op on this machine's GPU and store the result; DRY_RUN=1: on the CPU
	$(BIN)/python -m benchmarks.gpu.ops run $(DRY)

gpu-first: setup  ## nine minutes on a GPU, the most important measurements first; DRY_RUN=1: on the CPU
	$(FRESH)
	$(BIN)/python -m benchmarks.gpu.first run $(DRY) $(PIECE)

gpu-rest: setup  ## one piece of the rest of gpu-first, with all configurations and batches
	$(BIN)/python -m benchmarks.gpu.first rest $(DRY) $(PIECE)

gpu-end-to-end: setup  ## one piece of timing training and inference beside the dense formulation; DRY_RUN=1: on the CPU
	$(END_TO_END) $(PIECE)

gpu-compare-nuclei: setup  ## one piece of training the paper's systems on nuclei; DRY_RUN=1: one step of a tiny model
	$(FRESH)
	$(call compare,nuclei) $(PIECE)

gpu-compare-scenes: setup  ## the same on synthetic street scenes
	$(FRESH)
	$(SCENES)
	$(call compare,scenes) $(PIECE)

docs: setup  ## build the documentation as a site, build/site/index.html; a broken link is an error
	$(BIN)/zensical build

results: setup  ## write stored results and settings into README and docs, and propose an order of backends
	$(BIN)/python -m benchmarks.report.pages
	$(BIN)/python -m benchmarks.report.backend_order

format: setup  ## let ruff and clang-format rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC)

clean:  ## remove the files that builds and tools made
	rm -rf $(STAMP) .peers build dist *.egg-info solo_attn/_C.* solo_attn/_build.json .pytest_cache .mypy_cache .ruff_cache
