# `make demo` and `make test` set up all they need; the second time they start at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CIFAR10 := cifar10
RESULTS = bench/results/$(shell $(BIN)/python -m rumfast.bench.machine)
APT := env DEBIAN_FRONTEND=noninteractive apt-get
SYSTEM := g++ pkg-config libopencv-dev libturbojpeg0-dev

.PHONY: demo test lint speed records readme system daemons clean

demo: $(VENV)/ready
	$(BIN)/rumfast demo --out runs/demo

# Two at a time; then those that kill, starve or start clusters, and watch the clock.
ALONE := faults or ray or slurm

test: $(VENV)/ready lint | daemons
	$(BIN)/pytest --numprocesses 2 --dist loadfile --benchmark-disable -m "not ($(ALONE))"
	$(BIN)/pytest -m "$(ALONE)"
	$(MAKE) speed

# Ratios to peers against those recorded on the same kind of machine; one that fell by a fifth, three times, fails.
speed: $(VENV)/ready
	@if [ -f $(RESULTS)/quick.json ]; then \
		for suite in loader train sweep; do \
			$(BIN)/rumfast bench $$suite --quick --compare $(RESULTS)/quick.json || exit; done; \
	else echo "$(RESULTS)/quick.json is missing: ratios are not compared on this kind of machine"; fi

# mypy does not follow an editable install's mapped folders: it gets the package as it is installed.
lint: $(VENV)/ready
	$(BIN)/ruff check .
	rm -rf build/typed && mkdir -p build/typed/rumfast
	ln -s $(CURDIR)/rumfast/* $(CURDIR)/kernels $(CURDIR)/cli $(CURDIR)/bench build/typed/rumfast
	cd build/typed && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml rumfast

$(VENV)/ready: pyproject.toml | system
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[ffcv,parquet,ray,slurm,dev]'
	touch $@

# Measure everything README and docs show on this machine (some hours on two cores), and write it there.
# The engines are those that run here: where Slurm does, add it to ENGINES.
ENGINES := local ray
records: $(VENV)/ready data/cifar10/dataset.json
	mkdir -p $(RESULTS)
	$(BIN)/rumfast sweep plan cifar10-memorization.toml --out runs/records/cifar10-memorization --json > $(RESULTS)/plan.json
	for recipe in digits digits-tuning cifar10-small cifar10-small-tuning cifar10-memorization; do \
		$(BIN)/rumfast run $$recipe.toml --out runs/records/$$recipe --json > $(RESULTS)/$$recipe.json || exit; done
	$(BIN)/python -m rumfast.bench.held_out digits.toml --out runs/records/digits --save $(RESULTS)/held-out.json
	for experiment in difficulty rum; do \
		$(BIN)/rumfast experiment $$experiment digits.toml --seeds 10 --oracles 10 \
			--out runs/records/experiments --json > $(RESULTS)/digits-$$experiment.json || exit; done
	$(BIN)/rumfast experiment difficulty cifar10-small.toml \
		--out runs/records/cifar10-experiments --json > $(RESULTS)/cifar10-small-difficulty.json
	$(BIN)/rumfast experiment rum cifar10-small.toml --seeds 6 --oracles 6 \
		--out runs/records/cifar10-experiments --json > $(RESULTS)/cifar10-small-rum.json
	$(BIN)/rumfast score cifar10-small.toml --all --out runs/records/cifar10-small --json > $(RESULTS)/cifar10-small-scores.json
	$(BIN)/rumfast audit digits-audit.toml --out runs/records/audit --json > $(RESULTS)/digits-audit.json
	$(BIN)/python -m rumfast.bench.audits --save $(RESULTS)/audits.json
	$(BIN)/python -m rumfast.bench.accuracy --data data/cifar10 --seeds 5 --save $(RESULTS)/accuracy.json
	$(BIN)/rumfast bench all --save $(RESULTS)/bench.json
	$(BIN)/rumfast bench all --quick --save $(RESULTS)/quick.json
	$(BIN)/python -m rumfast.bench.builds --save bench/results/builds.json
	$(BIN)/python -m rumfast.bench.engines $(ENGINES) --save $(RESULTS)/engines.json
	$(BIN)/python -m rumfast.bench.reduce --save $(RESULTS)/reduce.json
	$(BIN)/python -m rumfast.bench.scale --save $(RESULTS)/scale.json

data/cifar10/dataset.json: | $(VENV)/ready
	$(BIN)/rumfast data pack $(CIFAR10) --out data/cifar10

readme: $(VENV)/ready
	$(BIN)/python -m rumfast.bench.readme

# What FFCV is built from, and what a bare Python lacks to build anything.
system:
	@missing=; \
	command -v g++ >/dev/null && pkg-config --exists opencv4 libturbojpeg 2>/dev/null || missing="$(SYSTEM)"; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	$(PYTHON) -c 'import os, sysconfig as s; os.stat(s.get_path("include") + "/Python.h")' 2>/dev/null \
		|| missing="$$missing python3-dev"; \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" = 0 ]; then $(APT) update -qq && $(APT) install -y -qq $$missing; \
	elif sudo -n true 2>/dev/null; then sudo $(APT) update -qq && sudo $(APT) install -y -qq $$missing; \
	else echo "Missing system packages; run this, then make again:"; \
		echo "  sudo apt-get update && sudo apt-get install -y $$missing"; exit 1; fi

# A Slurm cluster for its tests, which skip without.
daemons:
	@PATH="$$PATH:/usr/sbin"; \
	command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ]; then $(APT) update -qq && $(APT) install -y -qq slurm-wlm munge; \
	elif sudo -n true 2>/dev/null; then sudo $(APT) update -qq && sudo $(APT) install -y -qq slurm-wlm munge; \
	else echo "Tests of the Slurm engine will skip; for them: sudo apt-get install slurm-wlm munge"; fi

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
