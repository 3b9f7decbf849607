"""Published results to compare a run with, by model size (n_layer, n_embd)."""

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
