# `make` alone prints this file's help. CI runs `make check` and nothing else.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Index of PyTorch's wheel. Default: on Linux without an NVIDIA driver PyTorch's CPU index if it answers, otherwise pip's.
TORCH_INDEX ?=
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
# Of `make fuzz`.
TARGET ?= all
SECONDS ?= 60
CONFIG ?= training/demo/config.toml
# Each configuration has its own run and bundle, in a folder with the name in the configuration.
NAME := $(shell sed -n '/^name = /{s/^name = "\(.*\)"/\1/p;q}' $(CONFIG))
RUN ?= build/$(NAME)/run
BUNDLE ?= build/$(NAME)/bundle
LISTEN ?= 127.0.0.1:50051
SOURCES := adapters/polyhead_adapters bulk/polyhead_bulk bundle/polyhead_bundle client/polyhead_client export/polyhead_export rows/polyhead_rows server/polyhead_server training/polyhead_training
STUBS := proto/gen
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup deploy-tools proto proto-release clients train export serve test test-slow test-adapters test-ray test-ray-haproxy test-environments test-interoperability check bench bench-ray reliability release-check fuzz lint format types contracts lint-proto lint-deploy lint-workflow package supply audit lock docs references screenshots compare clean

help:  ## print this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Extras for training, exporting and serving the demo; `setup` adds those for tests, linters and pages.
RUNTIME_EXTRAS := server,training,export,client,demo
ALL_EXTRAS := $(RUNTIME_EXTRAS),bulk,http,hub,signing,sweep,tensorboard,otel,bench,dev,docs,supply

# The stamp files are older than these prerequisites when an installation is out of date.
$(VENV)/.runtime: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $$(sh deploy/torch_index.sh $(BIN)/python $(TORCH_INDEX)) torch==$(TORCH_VERSION)
	$(PIP_INSTALL) --editable '.[$(RUNTIME_EXTRAS)]'
	touch $@

$(VENV)/.installed: $(VENV)/.runtime
	$(PIP_INSTALL) --editable '.[$(ALL_EXTRAS)]'
	touch $@

setup: $(VENV)/.installed  ## create .venv and install everything, in the versions of constraints.txt

# An environment of its own: the generator's versions are the oldest that the stubs run with.
build/proto-generator/.installed: proto/generator.txt
	$(PYTHON) -m venv build/proto-generator
	build/proto-generator/bin/pip install --quiet --disable-pip-version-check --requirement proto/generator.txt
	touch $@

proto: build/proto-generator/.installed  ## regenerate the committed stubs and descriptors from proto/
	build/proto-generator/bin/python proto/generate.py $(STUBS)

# The packages of clients/npm: its compiler and its generator. Without npm, or if the registry does not answer, its tests
# are skipped.
NODE_MODULES := $(if $(shell command -v npm),clients/npm/node_modules/.package-lock.json)
clients/npm/node_modules/.package-lock.json: clients/npm/package-lock.json
	cd clients/npm && npm ci --no-audit --no-fund || echo 'the npm registry does not answer' >&2

# On Debian: apt-get install protoc-gen-go protoc-gen-go-grpc nodejs npm
clients: build/proto-generator/.installed $(NODE_MODULES)  ## regenerate the committed code of clients/go and clients/npm
	build/proto-generator/bin/python proto/generate.py --clients

proto-release: build/proto-generator/.installed  ## make the protocol the released one, which lint-proto compares with
	build/proto-generator/bin/python proto/generate.py --release

# Helm and kubectl check the chart and the manifests, Envoy carries calls in a test. Debian has the other proxies:
# apt-get install haproxy nginx-light
DEPLOY_TOOLS := build/deploy-tools/.installed
$(DEPLOY_TOOLS): deploy/tools.py deploy/tools.txt
	$(PYTHON) deploy/tools.py build/deploy-tools
	touch $@

deploy-tools: $(DEPLOY_TOOLS)  ## install Helm, kubectl and Envoy in build/deploy-tools/bin

# A run is trained again only if its configuration or data has changed; `make train` always trains.
$(RUN)/run.json: $(CONFIG) $(wildcard $(dir $(CONFIG))*.jsonl) | $(VENV)/.runtime
	$(BIN)/polyhead-train $(CONFIG) --output-dir $(RUN) --resume

$(BUNDLE)/bundle.json: $(RUN)/run.json | $(VENV)/.runtime
	$(BIN)/polyhead-export $(RUN) $(BUNDLE)

train: $(VENV)/.runtime  ## train CONFIG (default: the demo model) into RUN
	$(BIN)/polyhead-train $(CONFIG) --output-dir $(RUN)

export: $(RUN)/run.json  ## export RUN to the verified bundle BUNDLE
	$(BIN)/polyhead-export $(RUN) $(BUNDLE)

serve: $(BUNDLE)/bundle.json  ## serve BUNDLE on LISTEN; first installs, trains and exports if necessary
	exec $(BIN)/polyhead-serve $(BUNDLE) --listen $(LISTEN)

# Two processes per core of a small machine, as the tests of servers mostly wait; one thread each for PyTorch.
test: setup build/proto-generator/.installed $(DEPLOY_TOOLS)  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not slow' --numprocesses 4 --dist loadfile --no-loadscope-reorder

# An environment of its own: the frameworks require many packages that nothing else here does.
build/adapters/.installed: tests/adapters/requirements.txt pyproject.toml
	$(PYTHON) -m venv build/adapters
	build/adapters/bin/pip install --quiet --disable-pip-version-check --requirement tests/adapters/requirements.txt
	touch $@

test-adapters: build/adapters/.installed  ## run the tests of the adapters with LangChain, LlamaIndex and Haystack
	build/adapters/bin/pytest tests/adapters

# An environment of its own, as for the adapters.
build/ray/.installed: tests/ray_serve/requirements.txt pyproject.toml
	$(PYTHON) -m venv build/ray
	build/ray/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement tests/ray_serve/requirements.txt
	touch $@

# With the bundle of the other tests, as this environment has no PyTorch to make one. Ray leaves sockets for the garbage
# collector to close.
RAY_PYTEST = bundle=$$($(BIN)/python -m tests.support.demo) && POLYHEAD_TEST_BUNDLE=$$bundle \
  build/ray/bin/pytest -W ignore::pytest.PytestUnraisableExceptionWarning -W ignore::ResourceWarning

test-ray: setup build/ray/.installed  ## run the tests of Ray Serve and Ray Data, four minutes
	$(RAY_PYTEST) tests/ray_serve tests/ray_data -k 'not haproxy'

test-ray-haproxy: setup build/ray/.installed  ## run them with HAProxy in place of Ray's proxy, four minutes
	$(RAY_PYTEST) tests/ray_serve -k haproxy

# Three processes on a small machine with two cores, as servers that start and stop wait for a third of the time.
test-slow: setup $(NODE_MODULES)  ## run the commands of every page, fault scenarios, and the client beside the two packages with the tightest requirements
	$(BIN)/pytest -m 'slow and not environments' --numprocesses 3 --dist loadgroup --no-loadscope-reorder

test-environments: setup  ## run the client's tests beside the other packages that docs/guides/client.md lists, and with its oldest requirements
	$(BIN)/pytest -m environments

test-interoperability: $(BUNDLE)/bundle.json  ## run the real clients of other servers, each in its own environment; writes docs/interoperability.md
	$(BIN)/python -m tests.interoperability.run --bundle $(BUNDLE)

check: lint types contracts test test-slow test-adapters test-ray package supply audit docs  ## everything that CI runs

lint: setup lint-proto lint-deploy lint-workflow  ## code, protocol, deployment files, workflow, vocabulary, conflict markers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tests.support.public_wording
	! git grep -nIE '^\s*((<{7}|>{7}|\|{7}) |={7}$$)'

lint-proto: setup
	$(BIN)/python proto/generate.py --lint

# actionlint checks more than the schema, but no Python package installs it without an additional download.
lint-workflow: setup
	$(BIN)/yamllint --strict --config-file .yamllint.yaml .github .pre-commit-config.yaml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/ci.yml
	if command -v actionlint > /dev/null; then actionlint; fi

lint-deploy: setup $(DEPLOY_TOOLS)
	sh deploy/lint.sh $(BIN)

types: setup  ## mypy --strict on source and tests
	$(BIN)/mypy $(SOURCES) tests bench proto/generate.py proto/reference.py deploy/audit.py deploy/distributions.py deploy/grafana/check.py deploy/tools.py deploy/schemas/trim.py docs

contracts: setup  ## import-linter: allowed imports between packages and folders
	$(BIN)/lint-imports

package: setup  ## build and check the distributions in build/dist; install the server alone, as in the image; measure its size
	$(BIN)/python deploy/distributions.py build/dist
	rm -rf build/server-only
	PYTHON=$(PYTHON) sh deploy/install.sh server build/server-only
	$(BIN)/python -m bench.server.install_size build/server-only --output build/supply/install.json
	! ls build/server-only/lib/python3*/site-packages | grep -iE '^(torch|transformers)$$'

# Allowed licences. Adding one is a decision of the maintainers.
LICENCES := Apache-2.0;Apache Software License;Apache-2.0 AND BSD-2-Clause;Apache-2.0 OR BSD-2-Clause;$\
  Apache-2.0 OR BSD-3-Clause;BSD-3-Clause;3-Clause BSD License;BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0;$\
  MIT;MIT-0;MIT License;MPL-2.0 AND MIT;MPL-2.0 AND (Apache-2.0 OR MIT);PSF-2.0
supply: package  ## bill of materials and licences of what `make package` installed, in build/supply
	$(BIN)/cyclonedx-py environment build/server-only/bin/python --pyproject pyproject.toml --output-reproducible \
	  --output-file build/supply/sbom.cdx.json
	$(BIN)/pip-licenses --python build/server-only/bin/python --from mixed --order license --with-urls \
	  --format markdown --output-file build/supply/licences.md --allow-only '$(LICENCES)'

audit: setup  ## known vulnerabilities of the locked packages; reports if the advisory service does not answer
	$(BIN)/python deploy/audit.py

# Versions come from constraints.txt, hashes of all files of a release from the index.
COMPILE = $(BIN)/uv pip compile --quiet --no-annotate --generate-hashes --python-version 3.11 \
  --constraint constraints.txt --custom-compile-command 'make lock'
lock: setup  ## regenerate the lock files with hashes, after a change of pyproject.toml or constraints.txt
	$(COMPILE) --universal --output-file locks/build.txt locks/build.in
	$(COMPILE) --universal --output-file locks/server.txt --extra http pyproject.toml
	$(COMPILE) --universal --output-file locks/bulk.txt --extra http --extra bulk pyproject.toml
	$(COMPILE) --universal --output-file locks/ray.txt --extra ray --extra bulk pyproject.toml
	$(COMPILE) --python-platform x86_64-manylinux_2_28 --override locks/server-gpu-overrides.txt \
	  --output-file locks/server-gpu.txt --extra http pyproject.toml locks/server-gpu.in

docs: setup  ## build the documentation site in build/site; a broken link or name is an error
	$(BIN)/python -m docs.reference_pages --check
	$(BIN)/python -m proto.reference docs/reference/protocol.md
	$(BIN)/sphinx-build --quiet --fresh-env --fail-on-warning --keep-going docs build/site
	$(BIN)/python -m docs.site_links docs build/site

# A second model, for the page of polyhead admin compare.
CANDIDATE := build/screenshots/candidate
$(CANDIDATE)/bundle.json: $(RUN)/run.json
	$(BIN)/polyhead-train $(CONFIG) --set name=demo-next --set training.seed=1 --output-dir build/screenshots/run --resume
	$(BIN)/polyhead-export build/screenshots/run $(CANDIDATE)

screenshots: setup $(BUNDLE)/bundle.json $(CANDIDATE)/bundle.json  ## take the screenshots of the pages with Chromium; writes docs/assets/screenshots
	$(BIN)/python -m docs.screenshots --bundle $(BUNDLE) --run $(RUN) --candidate $(CANDIDATE)

references: setup  ## regenerate the references of configuration and command line in docs/reference
	$(BIN)/python -m docs.reference_pages

# Takes about an hour on two cores. Run it on an otherwise idle machine.
bench: $(BUNDLE)/bundle.json  ## measure the server against the onnxruntime upper bound; writes docs/benchmarks.md
	$(BIN)/python -m bench.server.throughput --bundle $(BUNDLE) --variant int8 --output bench/results/throughput-int8.json
	$(BIN)/python -m bench.server.throughput --bundle $(BUNDLE) --variant fp32 --output bench/results/throughput-fp32.json
	$(BIN)/python -m bench.server.startup --bundle $(BUNDLE) --output bench/results/startup.json
	$(BIN)/python -m bench.server.latency_breakdown --bundle $(BUNDLE) --output bench/results/latency_breakdown.json
	$(BIN)/python -m bench.server.workers --bundle $(BUNDLE) --output bench/results/workers.json
	$(BIN)/python -m bench.server.scaling --bundle $(BUNDLE) --work build/scaling --output bench/results/scaling.json
	$(BIN)/python -m bench.bulk.throughput --bundle $(BUNDLE) --output bench/results/bulk.json
	$(BIN)/python -m bench.bulk.memory --bundle $(BUNDLE) --output bench/results/bulk_memory.json
	$(BIN)/python -m bench.bulk.kills --bundle $(BUNDLE) --output bench/results/bulk_kills.json
	$(BIN)/python -m bench.report.page

# Takes about half an hour on two cores. Run it on an otherwise idle machine, or the measured times mean little.
reliability: $(BUNDLE)/bundle.json  ## inject faults into real servers; writes docs/reliability.md (QUICK=1: 5 minutes, without timing-dependent scenarios; writes nothing)
	$(BIN)/python -m tests.reliability.run --bundle $(BUNDLE) $(if $(QUICK),--quick)

release-check: setup $(BUNDLE)/bundle.json  ## run what a release requires on this commit, hours; continues where it stopped (ARGS=--list: what is done)
	$(BIN)/python -m bench.release.check $(ARGS)

fuzz: setup  ## fuzz the readers of untrusted bytes for SECONDS each, or one TARGET; requires an index with atheris
	$(PIP_INSTALL) --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz.run $(TARGET) --seconds $(SECONDS)

bench-ray: build/ray/.installed $(BUNDLE)/bundle.json  ## measure what Ray Serve costs; writes its part of docs/guides/ray.md
	build/ray/bin/python -m bench.server.ray_serve --bundle $(BUNDLE) --output bench/results/ray_serve.json
	$(BIN)/python -m bench.report.page

compare: $(BUNDLE)/bundle.json  ## install other servers, each in its own environment, and compare them with polyhead
	$(BIN)/python -m bench.comparison.install
	$(BIN)/python -m bench.comparison.compare --bundle $(BUNDLE) --output bench/results/comparison.json
	$(BIN)/python -m bench.comparison.compare --bundle $(BUNDLE) --only mosec mlserver --protocols --settings bench/results/comparison.json --output bench/results/protocols.json
	$(BIN)/python -m bench.report.page

format: setup  ## format the code and apply automatic fixes with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove build outputs and caches; keeps .venv
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
