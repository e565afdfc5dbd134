# The two commands of this project are `make repro` and `make test`; each sets up .venv where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PORT ?= 5000
# PyTorch's own package index, for machines without an NVIDIA driver.
TORCH_CPU ?= https://download.pytorch.org/whl/cpu

.PHONY: in-git setup repro test test-maths soak fuzz check bench scaling ui clean

# Installs what is pinned; again when the pins or the project's metadata change.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed, $(PYTHON) is older; try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@sh .ci/cpu-torch $(BIN)/python $(TORCH_CPU)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

# A ZIP download has no .git, without which DVC does nothing and the tests have no files.
in-git:
	@[ -e .git ] || git rev-parse --git-dir >/dev/null 2>&1 || \
		{ echo "error: $(CURDIR): not a git repository, as after a ZIP download, and DVC needs one: git clone it instead, or run git init && git add --all && git commit -m start" >&2; exit 1; }

setup: $(READY)

repro: in-git $(READY)
	@$(BIN)/python -m stages.recover
	@PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	@$(BIN)/python -m stages.show

# Two processes of one thread each at once, for two cores; the first one's words come last.
define side_by_side
	@mkdir -p .pytest_cache; export PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1; \
	$(BIN)/python -m pytest $(1) >.pytest_cache/first 2>&1 & first=$$!; trap "kill $$first" INT; \
	$(BIN)/python -m pytest $(2); failed=$$?; \
	wait $$first || failed=1; cat .pytest_cache/first; exit $$failed
endef

test: in-git $(READY)
	$(call side_by_side,-m 'not processes',-m processes)

# Every gradient against finite differences and autograd.
test-maths: $(READY)
	$(call side_by_side,tests/maths/test_architecture.py tests/maths/test_gradcheck.py,tests/maths --ignore-glob='*/test_architecture.py' --ignore-glob='*/test_gradcheck.py')

fuzz: $(READY)
	@$(BIN)/python -m pytest tests/faults/test_fuzz.py --hypothesis-profile=long --hypothesis-show-statistics

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.faults.soak

bench: $(READY)
	@$(BIN)/python -m benchmarks

# DATA, where given: other text than that of params.yaml, as data.dataset takes it; JOBS: experiments at a time.
scaling: $(READY)
	@$(BIN)/python -m studies.scaling --jobs $(or $(JOBS),2) $(if $(DATA),--data '$(DATA)')

ui: $(READY)
	-@$(BIN)/python -m custom_transformer sync
	@$(BIN)/mlflow ui --host 127.0.0.1 --port $(PORT) --backend-store-uri sqlite:///mlflow.db

clean:
	rm -rf $(VENV)
