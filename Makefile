# Two commands for a first look: make run, make test.  Both need Python 3.11 or newer; nothing is compiled.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Most tests wait; a file's tests stay together, and tests/conftest.py has their order.
JOBS   ?= $(shell echo $$(($$(nproc) * 5 / 2)))
CACHE  ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/spegel-consul-ci

# without compiled files each process of a test compiles the product and the tests anew, which takes longer than it runs
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run install dev-install real-parts test check docs audit unit fresh sim faults nomad nomad-there newer buildkit kaniko crio ktls soak bench archive clean

run: install
	$(BIN)/spegel-consul dev

install: $(STAMP)

$(STAMP): pyproject.toml requirements/run.txt requirements/build.txt .ci/install-locked .ci/trim_packages.py
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) must be Python 3.11 or newer with venv (Debian, Ubuntu: apt-get install python3-venv); \
	PYTHON=/path/to/python3 names another one" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip uninstall -qq --disable-pip-version-check --yes setuptools
	.ci/install-locked $(BIN)/python --editable
	touch $@

dev-install: $(VENV)/.dev-installed

$(VENV)/.dev-installed: $(STAMP) pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/build.txt
	# pip would warn of what requirements/run.txt leaves out, and compile twenty times what is imported of the tools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --no-compile --group dev
	touch $@

real-parts:
	.ci/install-real-parts $(CACHE) >/dev/null

check: dev-install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture

# the documentation as a site, in build/site
docs: dev-install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

audit: dev-install
	.ci/audit $(VENV)

test: dev-install real-parts
	SPEGEL_REAL_PARTS=$(CACHE) $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --no-loadscope-reorder

# what needs no other program, on any Python
unit: dev-install
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --no-loadscope-reorder -m "not real"

# the tests whose inputs are drawn, with inputs that no run before has drawn
fresh: dev-install
	SPEGEL_FRESH=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --no-loadscope-reorder -m "not real"

# clusters in virtual time, with faults; `make sim NODES=1000 SEEDS=200` takes a night
NODES ?= 200
SEEDS ?= 20
sim: dev-install
	$(BIN)/python -m tests.sim --nodes $(NODES) --seeds $(SEEDS) --jobs $(shell nproc)
	$(BIN)/python -m tests.sim.equals --nodes $(NODES)
	$(BIN)/python -m tests.sim.herd --nodes $(NODES) --zones 3 --racks 10 --trunk 2000

# every fault at its full length (half an hour), and what pulls noticed of it
faults: dev-install real-parts
	SPEGEL_FAULTS=all SPEGEL_FAULTS_TABLE=docs/reliability.md SPEGEL_REAL_PARTS=$(CACHE) \
		$(BIN)/python -m pytest tests/faults tests/real/test_cold_start.py tests/real/encryption tests/real/test_zones.py \
		tests/real/test_datacenters.py tests/real/runtimes/test_downloads.py tests/real/runtimes/test_trouble.py tests/real/runtimes/test_containerd_files.py

# what the documentation tells people to type for Nomad, on a real one; there is no package of it for CI to install
NOMAD ?= nomad
NOMAD_PROGRAM = $(abspath $(shell command -v "$(NOMAD)"))
nomad: nomad-there dev-install real-parts
	NOMAD=$(NOMAD_PROGRAM) SPEGEL_REAL_PARTS=$(CACHE) $(BIN)/python -m pytest tests/nomad

nomad-there:
	@"$(NOMAD_PROGRAM)" version 2>&1 | grep '^Nomad v' || \
		{ echo "'$(NOMAD)' is no Nomad: make nomad NOMAD=/path/to/nomad names its program" >&2; exit 1; }

# a real BuildKit, built from its module, because there is no package of it for CI to install, and buildx
buildkit: dev-install real-parts
	.ci/install-buildkit $(CACHE)/buildkit
	.ci/install-real-parts $(CACHE) buildx
	BUILDKIT=$(CACHE)/buildkit SPEGEL_REAL_PARTS=$(CACHE) \
		$(BIN)/python -m pytest tests/real/runtimes/test_buildkit.py tests/real/runtimes/test_buildx.py

# what the documentation says about kaniko, on a real one; there is no package of it for CI to install
KANIKO ?= executor
kaniko: dev-install real-parts
	KANIKO=$(abspath $(shell command -v "$(KANIKO)")) SPEGEL_REAL_PARTS=$(CACHE) \
		$(BIN)/python -m pytest tests/real/runtimes/test_kaniko.py

# what the documentation says about CRI-O, on a real one; there is no package of it for CI to install
CRIO ?= crio
crio: dev-install real-parts
	CRIO=$(abspath $(shell command -v "$(CRIO)")) SPEGEL_REAL_PARTS=$(CACHE) \
		$(BIN)/python -m pytest tests/real/runtimes/test_crio.py

# connections that the kernel encrypts, on Debian's kernel in an emulated machine, which takes some minutes
ktls: dev-install real-parts
	.ci/test-with-ktls $(CACHE) $(BIN)/python -q tests/registry/test_kernel_tls.py tests/zerocopy/test_kernel_tls.py

# the tests with real runtimes, with a containerd that no Debian suite has, and DOCKER, a checkout of moby, if there is one
DOCKER ?=
newer: dev-install real-parts
	parts=$$(.ci/build-newer-runtimes $(CACHE) $(DOCKER)) && \
		SPEGEL_REAL_PARTS=$$parts $(BIN)/python -m pytest tests/real/runtimes tests/real/test_pull.py

MINUTES ?= 60
soak: dev-install real-parts
	PYTHONPATH=tests SPEGEL_REAL_PARTS=$(CACHE) $(BIN)/python -m tests.soak --minutes $(MINUTES)

bench: dev-install
	$(BIN)/python -m bench

# what jobs/README.md runs without an image, for machines of this kind with this version of Python
DIST ?= dist
archive:
	.ci/archive $(PYTHON) $(DIST)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build *.egg-info
