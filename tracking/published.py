"""Published results to compare a run with, by model size (n_layer, n_embd), and for which runs they are comparable."""

from pathlib import Path

# Loss of OpenAI's weights on the FineWeb-Edu validation shard, in nats per token (build-nanogpt, play.ipynb).
FINEWEB_EDU_LOSS = {(12, 768): {"GPT-2 124M": 3.2924}}

# HellaSwag accuracy by the mean loss of each ending (acc_norm). GPT-2: the lines in the plots of build-nanogpt
# and llm.c, whose scoring scripts state 0.2955 for 124M, see docs/evaluate.md. GPT-3: from its paper (table H.1).
HELLASWAG = {
    (12, 768): {"GPT-2 124M": 0.294463, "GPT-3 124M": 0.337},
    (24, 1024): {"GPT-2 350M": 0.375224, "GPT-3 350M": 0.436},
    (36, 1280): {"GPT-2 774M": 0.431986, "GPT-3 760M": 0.510},
    (48, 1600): {"GPT-2 1558M": 0.488946, "GPT-3 1.3B": 0.547},
}
HELLASWAG_CHANCE = 0.25  # of four endings


def loss_references(records):
    """Return {name: loss} for the runs of `records` (each a config.json) that train on FineWeb-Edu in GPT-2's tokens.

    Only for models of the published size: the losses of others are not comparable.
    """
    return results_for_sizes([record for record in records if trains_on(record, "fineweb-edu")], FINEWEB_EDU_LOSS)


def hellaswag_references(records):
    """Return {name: accuracy}: chance, and published scores for runs of their size on all examples of HellaSwag.

    Only for runs on FineWeb: a model of the same size that has read something else is another experiment.
    """
    comparable = [record for record in records if trains_on(record, "fineweb") and scores_all_examples(record)]
    return {"chance": HELLASWAG_CHANCE} | results_for_sizes(comparable, HELLASWAG)


def results_for_sizes(records, table):
    """Return the results {name: value} of a table above for the model sizes of `records`."""
    models = [record.get("model", {}) for record in records]
    sizes = {(model.get("n_layer"), model.get("n_embd")) for model in models} & table.keys()
    return {name: value for size in sorted(sizes) for name, value in table[size].items()}


def trains_on(record, dataset):
    """Whether a run's data is `dataset` (part of its name on the hub) in tokens of GPT-2."""
    data, folder = record.get("data", {}), record.get("config", {}).get("data_dir", "")
    named = dataset in (data.get("source") or "") or Path(folder).name.startswith("edu_fineweb")
    return named and data.get("tokenizer", "gpt2") == "gpt2"


def scores_all_examples(record):
    """Whether a run's HellaSwag score is of the original examples, all of them."""
    config = record.get("config", {})
    return config.get("hellaswag_limit") is None and config.get("hellaswag_data") is None
