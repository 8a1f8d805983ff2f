# Two commands for everybody: `make demo` and `make test`. Each makes .venv and installs what it needs by itself.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
READY := .venv/.ready
WORLD := demo/world
SHARDS := demo/shards

.PHONY: demo test test-all test-pure chaos bench bench-gpu lint format lock audit clean

demo: $(READY)  ## a synthetic world, learnt without labels on Ray; about five minutes on two cores
	rm -rf demo
	$(BIN)/python pipelines/synthesize.py pipelines/presets/demo_world.yaml out=$(WORLD)
	$(BIN)/python pipelines/ingest.py layout=market1501 raw=$(WORLD) out=$(SHARDS)
	$(BIN)/python pipelines/train.py pipelines/presets/demo.yaml data.root=$(SHARDS) runs=demo/runs name=demo

test: $(READY)  ## every test that takes less than a minute or so; those with Ray, and those with servers, in processes of their own
	$(BIN)/python -m pytest -m "not ray and not long" -n 2 --dist loadscope
	$(BIN)/python -m pytest -m "ray and not services and not long" -n 2 --dist loadfile
	$(BIN)/python -m pytest -m "services and not long"

test-all: test  ## and the long ones: drivers, heads of clusters and nodes killed, sweeps of several generations, more trainings
	$(BIN)/python -m pytest -m "long and not services"
	$(BIN)/python -m pytest -m "long and services"

test-pure: $(READY)  ## only what needs no Ray: under a minute
	$(BIN)/python -m pytest -m "not ray" tests/unit tests/architecture tests/local

chaos: $(READY) $(SHARDS)/train/manifest.json  ## kill -9 in every phase, nodes that go and come, damaged pictures, a soak: hours
	rm -rf chaos
	$(BIN)/python -m pytest tests/chaos
	$(BIN)/python -m tests.chaos.kills shards=$(SHARDS) runs=chaos/kills kills=60 seed=0 out=chaos/kills.json
	$(BIN)/python -m tests.chaos.elastic shards=$(SHARDS) runs=chaos/elastic out=chaos/elastic.json
	$(BIN)/python -m tests.chaos.fuzz_pictures files=20000 seed=0 out=chaos/fuzz.json
	$(BIN)/python -m tests.chaos.soak shards=$(SHARDS) runs=chaos/soak minutes=120 out=chaos/soak.json

$(SHARDS)/train/manifest.json: | $(READY)
	rm -rf $(WORLD) $(SHARDS)
	$(BIN)/python pipelines/synthesize.py pipelines/presets/demo_world.yaml out=$(WORLD)
	$(BIN)/python pipelines/ingest.py layout=market1501 raw=$(WORLD) out=$(SHARDS)

bench: $(READY)  ## what each phase costs on this machine's CPUs, in under fifteen minutes
	PYTHON=$(BIN)/python benchmarks/on_cpu.sh bench

bench-gpu: $(READY)  ## what there is to see on one GPU; meant for nine minutes, not run as a whole yet
	PYTHON=$(BIN)/python benchmarks/on_gpu.sh bench-gpu

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(READY)  ## writes down what is installed now
	$(BIN)/pip freeze --exclude-editable --exclude torch | grep -v ' @ ' > constraints.txt
	echo "torch==$$($(BIN)/python -c 'import torch; print(torch.__version__.split("+")[0])')" >> constraints.txt

audit: $(READY)  ## known vulnerabilities of the locked packages, where the service answers; pip-audit in a place of its own
	test -x .audit/bin/pip-audit || { $(PYTHON) -m venv .audit && .audit/bin/pip install --quiet pip-audit; } || true
	$(BIN)/python deploy/audit.py .audit/bin/pip-audit constraints.txt

clean:
	rm -rf .venv .audit demo chaos bench

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "gracl needs Python 3.11, 3.12 or 3.13: install one, or give PYTHON=/path/to/python"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[cpu,dev]"
	touch $@
