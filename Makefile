# On a fresh machine: `make quickstart` trains a small GPT, `make test` runs all checks.
# PYTHON=python3.12 selects another interpreter (3.11 or newer).

PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test torture clean

quickstart: .venv/installed
	$(BIN)/python prepare.py stdlib --tokenizer byte --out data/stdlib
	$(BIN)/python train_gpt2.py config/quickstart.py --resume
	@printf 'class Parser:\n    def __init__(self, ' | \
		$(BIN)/python sample.py --model log/quickstart --num_samples 3 --max_new_tokens 350 --style focused
	@echo
	@echo "next:           source .venv/bin/activate   (the commands in README.md then work as they are written)"
	@echo "the model:      log/quickstart/model_*.pt   (python sample.py --prompt 'def ' continues whatever you type)"
	@echo "the loss plot:  log/quickstart/plot.png"
	@echo "the log:        log/quickstart/log.txt"
	@echo "the data:       data/stdlib"

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

torture: .venv/installed-dev  # kill 100 runs and 20 preparations, damage 200 files and 2,000 models: ten minutes on two cores
	$(BIN)/python tests/torture_training.py --kills 100 --damages 200
	$(BIN)/python tests/torture_fineweb.py --kills 20
	$(BIN)/python tests/torture_preparation.py --flips 200
	$(BIN)/python tests/torture_formats.py --flips 2000

.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is required: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	touch $@

clean:
	rm -rf .venv data/stdlib log/quickstart log/debug
