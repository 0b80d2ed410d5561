# `make` lists the targets. PYTHON=python3.12 chooses the interpreter of every target, ARGS adds arguments.

PORT ?= 8000
ENV_FILE ?= .env
CHECK := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
ifndef PYTHON
PYTHON := $(shell for python in python3.14 python3.13 python3.12 python3.11 python3; do \
	"$$python" -c '$(CHECK)' >/dev/null 2>&1 && echo "$$python" && break; done)
endif

# Relative, so that the path of the checkout may hold spaces.
VENV ?= .venv
RUN := $(VENV)/bin/python
MANAGE := $(RUN) manage.py
export PIP_ROOT_USER_ACTION := ignore
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo load install serve test test-pythons test-matrix test-kafka test-containers chaos lint docs bench env format lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 18

demo: install ## everything at once, with sample data, until Ctrl-C (KAFKA=apache: on Apache Kafka, needs Java 17 and Maven)
	@exec $(if $(filter apache,$(KAFKA)),$(RUN) -m tests.kafka.demo,$(MANAGE) demo) $(ARGS)

load: install ## put a visible load on a running demo: PORT, RATE (posts/s), SECONDS
	@$(MANAGE) load --port "$(PORT)" --rate "$(or $(RATE),200)" --seconds "$(or $(SECONDS),30)"

# Built anew when the interpreter, the lock or the place changes, or when an earlier try did not finish.
install: ## the virtual environment, in VENV (.venv)
	@"$(PYTHON)" -c '$(CHECK)' 2>/dev/null || { echo "error: '$(PYTHON)' is no Python 3.11 or newer with \
	venv: install one (Debian: apt install python3-venv) or name it, as in: make PYTHON=python3.13" >&2; exit 1; }
	@wanted="$$("$(PYTHON)" -c 'import sys; print(sys.base_prefix, sys.version)') $$PWD $$(cksum < requirements-dev.lock)"; \
	if [ "$$(cat $(VENV)/installed 2>/dev/null)" != "$$wanted" ] || ! $(RUN) -c ''; then \
	    echo "Installing into $(VENV) ..." && rm -f $(VENV)/installed && "$(PYTHON)" -m venv --clear $(VENV) && \
	    $(RUN) -m pip install --quiet --require-hashes -r requirements-dev.lock && \
	    echo "$$wanted" > $(VENV)/installed; \
	fi

serve: install ## the API alone, on PORT (8000)
	@$(MANAGE) embedded start
	@$(MANAGE) migrate --noinput
	@$(MANAGE) create_topics
	@PATH="$$PWD/$(VENV)/bin:$$PATH" PORT="$(PORT)" exec bin/serve

# Four processes with servers of their own each, for most tests wait most of the time; `tests/conftest.py` has the
# order of the files.
IN_PARALLEL = --numprocesses $(or $(JOBS),4) --dist loadfile --no-loadscope-reorder

test: install ## the whole suite, on real servers of its own
	@$(RUN) -m pytest $(IN_PARALLEL) $(ARGS)

# Where threads meet, locks and garbage matter, which differ between the versions of Python.
KILLED = tests/crash/test_killed_workers.py tests/crash/test_killed_stores.py
ON_EACH_PYTHON = tests/api tests/feeds/test_cache.py tests/feedsite/test_connections.py tests/crash/test_isolation.py $(KILLED)
# What is about the document, or about what a request says, and not about threads.
ON_ONE_PYTHON := $(patsubst %,--ignore=tests/api/test_%.py,clients schemathesis openapi tokens cross_origin bulk)
VERSION := import sys; print("%d.%d" % sys.version_info[:2])

test-pythons: install ## the API, cache and crash tests on the oldest and the newest Python here, but for that of `test`
	@own="$$($(RUN) -c '$(VERSION)')"; \
	others="$$(.ci/pythons | sed -n '1p;$$p' | uniq | grep -v "python$$own$$")"; \
	[ -n "$$others" ] || echo "test-pythons is skipped: there is no Python but $$own."; \
	echo "$$others" | while read -r python; do \
	    [ -n "$$python" ] || continue; \
	    version="$$("$$python" -c '$(VERSION)')"; \
	    echo "On Python $$version:"; \
	    $(MAKE) --no-print-directory test PYTHON="$$python" VENV=".venv-$$version" ARGS="$(ON_EACH_PYTHON) $(ON_ONE_PYTHON)" || exit 1; \
	done

# Each cell in a virtual environment of its own, .venv-<python>-<django>, which stays for the next time.
test-matrix: ## the API, cache and crash tests on every Python here with Django 5.2 and 6.0 (PYTHONS="3.12 3.13", DJANGOS=6.0, ARGS)
	@.ci/matrix $(or $(ARGS),$(ON_EACH_PYTHON) tests/admin/test_login.py tests/admin/test_hostile.py tests/feedsite/test_command_line.py)

# Not all of tests/crash, whose other half Kafka has less of a part in, so that it stays a matter of minutes.
TOUCHING_KAFKA := $(patsubst %,tests/eventbus/test_%.py,backlog consumer dead_letters kafka producer replay) \
	$(patsubst %,tests/crash/test_%.py,broker three_brokers killed_workers killed_stores) \
	tests/api/test_first_check.py tests/e2e/test_demo_on_apache_kafka.py

test-kafka: install ## the tests that touch Kafka, on Apache Kafka 4.1 (needs Java 17 and Maven)
	@KAFKA=apache $(RUN) -m pytest $(IN_PARALLEL) $(or $(ARGS),$(TOUCHING_KAFKA))

test-containers: install ## the compose file, started, used, killed and restarted (needs a Docker Engine with Compose v2)
	@$(RUN) -m pytest $(or $(ARGS),tests/containers)

chaos: install ## random crashes and outages under load, then a count (SEED, SECONDS, CELLS=2, KAFKA=apache)
	@SEED="$(SEED)" SECONDS="$(SECONDS)" CELLS="$(CELLS)" KAFKA="$(KAFKA)" exec $(RUN) -m tests.crash.chaos

lint: install ## style, types and the direction of imports
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy .
	@$(VENV)/bin/lint-imports

docs: install ## the documentation as a site, in site/; ARGS=serve shows it while you edit
	@$(RUN) -m mkdocs $(or $(ARGS),build) --strict

bench: install ## measure the throughput and latency of this machine
	@$(RUN) -m benchmarks $(ARGS)

env: ## .env with random secrets for docker compose; adds those it lacks
	@$(PYTHON) bin/write-env "$(ENV_FILE)"

format: install ## let ruff rewrite the code
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

# One version of each package on every Python, hence `fewest`.
COMPILE := $(VENV)/bin/uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 \
	--fork-strategy fewest --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
	--custom-compile-command "make lock"

lock: install ## renew requirements.lock and requirements-dev.lock from pyproject.toml
	@$(RUN) -m pip install --quiet uv
	@$(COMPILE) -o requirements.lock
	@$(COMPILE) --extra embedded --extra tracing --group dev -o requirements-dev.lock

clean: ## stop the embedded servers, delete their data, the virtual environments and the caches
	@[ ! -e .local/servers.json ] || FEED_DATA_DIR=.local $(MANAGE) embedded remove
	@rm -rf .local .venv .venv-* .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache staticfiles site
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
