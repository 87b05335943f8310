# netagent: `make demo` shows it, `make test` checks it. Both set the machine up first (Debian 12, root).
PYTHON  ?= /usr/bin/python3
VENV    ?= .venv
PY       = $(VENV)/bin/python
SHIM     = src/netagent/cni/netagent-cni
PACKAGES = python3 python3-venv python3-nftables gcc libc6-dev iproute2 nftables iptables conntrack iputils-ping \
           containernetworking-plugins iperf3 ipset curl chromium
PYTHONS  = src tests benchmarks $(shell grep -l '^\#!.*python3' scripts/*)
DIR     ?= tests/netpol
CASES   ?=

.PHONY: setup demo lint unit kernel contract lab netpol fuzz chaos test bench image image-base manifests docs lock clean

setup: $(VENV)/.done $(SHIM)

# libnftables' Python module comes from Debian; only it is let into the virtual environment.
$(VENV)/.done: requirements-dev.lock pyproject.toml Makefile
	./scripts/install-packages $(PACKAGES)
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(PY) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	ln -sfn /usr/lib/python3/dist-packages/nftables $$($(PY) -c 'import site; print(site.getsitepackages()[0])')/nftables
	touch $@

$(SHIM): src/netagent/cni/shim.c | $(VENV)/.done
	$(CC) -std=c11 -Os -static -Wall -Wextra -Werror -o $@ $<

demo: setup
	$(PY) -m netagent lab demo

lint: setup
	$(VENV)/bin/ruff check $(PYTHONS)
	$(VENV)/bin/ruff format --check $(PYTHONS)
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

unit: setup
	$(PY) -m pytest -n 2 tests/unit tests/fuzz

kernel: setup
	$(PY) -m pytest -n 2 --dist loadfile tests/kernel

contract: setup
	$(PY) -m pytest tests/contract

lab: setup
	$(PY) -m pytest tests/lab

# Runs NetworkPolicy cases with real connections: make netpol DIR=<directory> [CASES=<id or tag>]
netpol: setup
	PYTHONPATH=tests $(PY) -m netpol $(DIR) $(if $(CASES),--cases '$(CASES)')

# Coverage-guided fuzzing: make fuzz [TARGET=pod] [SECONDS=60]. Targets: tests/fuzz/targets.py; all of them by default.
fuzz: setup
	$(PY) -m pip install -q --disable-pip-version-check --require-hashes -r requirements-fuzz.lock
	cd tests && for target in $(or $(TARGET),$$(ls fuzz/corpus)); do \
	    ../$(PY) -m fuzz $$target $(or $(SECONDS),60) || exit 1; done

# Agents are killed by kill -9 under churn and traffic: make chaos [KILLS=200] [SEED=<number>]
chaos: setup
	PYTHONPATH=tests $(PY) -m chaos --kills $(or $(KILLS),200) $(if $(SEED),--seed $(SEED))

test: lint unit kernel contract lab netpol

bench: setup
	$(PY) -m benchmarks $(NAME) $(if $(QUICK),--quick) $(if $(JSON),--json $(JSON))

# BASE=, IMAGE= and ARCHIVE= as in the script. Where no registry is reachable: make image-base first.
image:
	./scripts/build-image

image-base:
	./scripts/build-image-base

manifests:
	./scripts/render-manifests

docs: setup
	$(PY) scripts/config-reference > docs/configuration.md
	$(PY) scripts/command-reference > docs/commands.md

lock: setup
	$(PY) -m pip install -q uv
	$(VENV)/bin/uv pip compile -q pyproject.toml --generate-hashes --no-emit-index-url --no-header -o requirements.lock
	$(VENV)/bin/uv pip compile -q pyproject.toml --extra dev --generate-hashes --no-emit-index-url --no-header \
	    -o requirements-dev.lock
	$(VENV)/bin/uv pip compile -q pyproject.toml --extra fuzz --generate-hashes --no-emit-index-url --no-header \
	    -c requirements-dev.lock -o requirements-fuzz.lock

clean:
	rm -rf $(VENV) $(SHIM) .mypy_cache .ruff_cache .pytest_cache .hypothesis
