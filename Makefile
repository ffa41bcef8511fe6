# make demo | test | thorough | integration | proofs | lint | types | bench | wheel-check | clean
# Each builds .venv from nothing when needed: python3, pip and make are enough. ARGS is handed to pytest.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
WHEEL := build/wheel

.DEFAULT_GOAL := test
.PHONY: demo test thorough integration proofs lint types bench wheel-check clean

demo: $(VENV)/test.stamp
	$(RUN) -m riemann_ng demo

test: $(VENV)/test.stamp
	$(RUN) -m pytest $(ARGS)

thorough: $(VENV)/test.stamp
	RIEMANN_NG_PROFILE=thorough $(RUN) -m pytest tests $(ARGS)

# Inside Lightning, the Hugging Face Trainer and TensorBoard: large packages, so not a part of `make test`.
integration: $(VENV)/test.stamp $(VENV)/integration.stamp
	$(RUN) -W ignore -m pytest -c /dev/null -p no:cacheprovider tests_integration $(ARGS)

# Coq with MathComp, installed by apt where that is allowed.
proofs:
	./proofs/check.sh

lint: $(VENV)/dev.stamp
	$(RUN) -m ruff check .

types: $(VENV)/dev.stamp
	$(RUN) -m mypy

bench: $(VENV)/bench.stamp
	set -e; for benchmark in benchmarks/[a-z]*.py; do $(RUN) $$benchmark; done

# The wheel, in an environment that holds nothing but what the wheel declares, and away from the source tree.
wheel-check: $(VENV)/dev.stamp
	rm -rf $(WHEEL)
	$(RUN) -m pip wheel --quiet --no-deps --wheel-dir $(WHEEL) .
	$(call new-environment,$(WHEEL)/env)
	$(WHEEL)/env/bin/python -m pip install --quiet --no-compile --constraint constraints.txt $(WHEEL)/*.whl
	$(WHEEL)/env/bin/python -m pip check
	cd $(WHEEL) && env/bin/python -I -c "import riemann_ng as r; [getattr(r, name) for name in r.__all__ if name != 'testing']"
	test -f $(WHEEL)/env/lib/python*/site-packages/riemann_ng/py.typed
	cd $(WHEEL) && env/bin/riemann-ng --version && env/bin/riemann-ng demo >demo.txt

clean:
	rm -rf $(VENV) build dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per extra, made again when the declared or the tested versions change.
$(VENV)/%.stamp: $(VENV)/created pyproject.toml constraints.txt
	@echo 'installing .[$*] into $(VENV): slow the first time'
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@

$(VENV)/created:
	$(call new-environment,$(VENV))
	@touch $@

# Some systems ship venv without ensurepip; there, the system's own pip puts pip into the new environment.
define new-environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo 'riemann_ng needs Python 3.10 or newer; name one: make PYTHON=python3.12' >&2; exit 1; }
	@rm -rf $(1)
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		$(PYTHON) -m venv $(1); \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
		$(PYTHON) -m venv --without-pip $(1) && $(PYTHON) -m pip install --quiet --target \
			"$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" pip; \
	else \
		echo '$(PYTHON) has neither ensurepip nor pip: install the package python3-venv or python3-pip' >&2; exit 1; \
	fi
endef
