# On a fresh machine: `make quickstart` trains a small GPT, `make test` runs all checks.
# PYTHON=python3.12 selects another interpreter (3.11 or newer).

PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test gpu torture clean

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

gpu: .venv/installed-dev  # on a GPU: the tests, then training, sampling and HellaSwag by their commands, then all benchmarks
	$(BIN)/python -m pytest --device cuda
	$(BIN)/python train_gpt2.py config/debug.py --device cuda --log_dir log/gpu --overwrite
	$(BIN)/python sample.py --model log/gpu --device cuda --cuda_graph --prompt "1 + "
	PYTHONPATH=.:tests $(BIN)/python -c 'from helpers import write_hellaswag; write_hellaswag("log/gpu/hellaswag.jsonl")'
	$(BIN)/python hellaswag.py --model log/gpu --device cuda --data log/gpu/hellaswag.jsonl
	$(BIN)/python bench.py all --device cuda --json log/gpu/bench.json

torture: .venv/installed-dev  # kill, disturb and damage runs and preparations, fill the disk: half an hour on two cores
	$(BIN)/python tests/torture_training.py --kills 100 --damages 200
	$(BIN)/python tests/torture_fineweb.py --kills 20
	$(BIN)/python tests/torture_preparation.py --flips 200
	$(BIN)/python tests/torture_formats.py --flips 2000

.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is required: make PYTHON=python3.12 ...")'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	touch $@

clean:
	rm -rf .venv data/stdlib log/quickstart log/debug
