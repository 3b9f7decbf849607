"""One size of the scaling study in docs/scaling.md: a small GPT on Python's standard library, as bytes.

python sweep.py config/scaling.py --n_embd 32,64,96,128,192

The optimizer is AdamW, as in the published studies. Every size reads the same tokens, each of them once.
"""

data_dir = "data/stdlib"
log_dir = "log/scaling"

n_layer = 3
n_head = 4
n_embd = 64
block_size = T = 128
B = 8
total_batch_size = B * T

max_steps = 500
warmup_steps = 50
max_lr = 3e-3
min_lr = 3e-5
beta2 = 0.98
val_interval = 0  # at the start and at the end
val_tokens = 1024 * T
sample_interval = 0
checkpoint_interval = 0
log_interval = 10
hellaswag_interval = 0
