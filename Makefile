# The two commands of this project are `make repro` and `make test`; each sets up .venv where it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PORT ?= 5000
# PyTorch's own package index, for machines without an NVIDIA driver.
TORCH_CPU ?= https://download.pytorch.org/whl/cpu

.PHONY: in-git setup repro test test-maths soak fuzz check docs bench race scaling smollm2 ui clean

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

# Several processes of one thread each at once, each with one of the given selections of tests; the last one's words come
# first. More than there are cores, since tests of servers, of the Hub and of processes wait. A thread that waits for
# another one must not keep a core from the other processes.
define at_once
	@mkdir -p .pytest_cache; rm -f .pytest_cache/[12]; export PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE; trap 'kill $$others' INT; others=; \
	run() { $(BIN)/python -m pytest "$$@"; }; \
	$(foreach n,1 2,$(if $($(1)_$(n)),run $($(1)_$(n)) >.pytest_cache/$(n) 2>&1 & others="$$others $$!"; )) \
	run $($(1)); failed=$$?; \
	for other in $$others; do wait $$other || failed=1; done; cat .pytest_cache/[12]; exit $$failed
endef

tests_1 = tests/text tests/fast tests/book tests/exercises
tests_2 = tests/maths tests/runs tests/stages tests/pages
tests = tests $(addprefix --ignore=,$(tests_1) $(tests_2))
proofs = tests/maths --ignore=tests/maths/test_architecture.py --ignore=tests/maths/test_gradcheck.py
proofs_1 = tests/maths/test_architecture.py tests/maths/test_gradcheck.py

test: in-git $(READY)
	$(call at_once,tests)

# Every gradient against finite differences and autograd.
test-maths: $(READY)
	$(call at_once,proofs)

fuzz: $(READY)
	@$(BIN)/python -m pytest tests/faults/test_fuzz.py --hypothesis-profile=long --hypothesis-show-statistics

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.faults.soak
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.faults.soak --together --kills 100

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]' -c constraints.txt
	@touch $@

# Built from nothing each time, since its pages depend on the code, too. Without the network.
docs: $(VENV)/.docs
	@rm -rf docs/_site
	@OMP_NUM_THREADS=1 $(BIN)/python -m sphinx --fail-on-warning --nitpicky --keep-going --quiet docs docs/_site
	@rm -r docs/_site/.doctrees
	@OMP_NUM_THREADS=1 $(BIN)/python -m book.built docs/_site
	@echo "docs/_site/index.html"

bench: $(READY)
	@$(BIN)/python -m benchmarks

# TEXT, where given: a file, such as tinyshakespeare, in place of the primer
race: $(READY)
	@$(BIN)/python -m benchmarks.race $(if $(TEXT),--text '$(TEXT)')

# DATA, where given: other text than that of params.yaml, as data.dataset takes it; JOBS: experiments at a time.
scaling: $(READY)
	@$(BIN)/python -m studies.scaling --jobs $(or $(JOBS),2) $(if $(DATA),--data '$(DATA)')

# TEXT, where given: a file of text to learn in place of the primer's lessons; STEPS: of the fine-tuning.
smollm2: in-git $(READY)
	@$(BIN)/python -m studies.smollm2 $(if $(TEXT),--text '$(TEXT)') $(if $(STEPS),--steps $(STEPS))

ui: $(READY)
	-@$(BIN)/python -m custom_transformer sync
	@$(BIN)/mlflow ui --host 127.0.0.1 --port $(PORT) --backend-store-uri sqlite:///mlflow.db

clean:
	rm -rf $(VENV)
