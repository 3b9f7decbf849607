"""GPT-2 124M on 10B tokens of FineWeb-Edu. The values are the defaults. On 8 GPUs:

torchrun --standalone --nproc_per_node=8 train_gpt2.py config/gpt2_124M.py
"""

data_dir = "edu_fineweb10B"
log_dir = "log/gpt2_124M"

n_layer = 12
n_head = 12
n_embd = 768
block_size = T = 1024
B = 64
total_batch_size = 2**19  # about half a million tokens, as for GPT-3 Small

max_steps = 19073  # 10^10 tokens
warmup_steps = 715  # 375 million tokens, as for GPT-3
max_lr = 6e-4
min_lr = 6e-5  # at max_steps, as in build-nanogpt; GPT-3's cosine ended before the run, see docs/reproduce_gpt2_124M.md
