"""GPT-2 124M on FineWeb-Edu with Muon: meant to reach the loss of config/gpt2_124M.py with two thirds of its tokens.

torchrun --standalone --nproc_per_node=8 train_gpt2.py config/gpt2_124M_muon.py

Not run yet. The values are derived from published runs of others, named below; modded-nanogpt is Keller Jordan's
speedrun, in its record of 2024-10-10 (records/101024_Muon), which ties the head to the embedding as GPT-2 does.

- Tokens: to a loss of 3.28 on FineWeb that record takes 3.25B tokens, and the last one with AdamW alone 5.0B. Both
  have rotary positions, no biases and RMSNorm, so only their ratio is used here: 0.65 of 10B.
- Learning rates: that record's Muon has 3.6e-4 for updates of root mean square 1. Ours have 0.2, hence 3.6e-4 / 0.2.
  Its AdamW has 3.6e-3 for the embedding, twice ours for the matrices: `adamw_lr_scale`.
- Warm-up: that record has none. 100 steps are a caution, because LayerNorms and biases are trained here too.
- Weight decay: that record has none. Moonshot AI 2025 (section 2.2) has 0.1 and finds that long runs need it.

To check it, compare its validation loss with that of config/gpt2_124M.py on the same shards, and with OpenAI's GPT-2:
3.2924 on the validation shard of FineWeb-Edu. The speedrun's 3.28 is for validation tokens of FineWeb, which is other
text: to compare with it, give llm.c's shards of FineWeb as --data_dir.
"""

data_dir = "edu_fineweb10B"
log_dir = "log/gpt2_124M_muon"

n_layer = 12
n_head = 12
n_embd = 768
block_size = T = 1024
B = 64
total_batch_size = 2**19

max_steps = 12400  # 6.5 · 10^9 tokens
warmup_steps = 100
optimizer = "muon"
schedule = "linear"
max_lr = 1.8e-3
adamw_lr_scale = 2.0
min_lr = 0.0
