"""GPT-3 Small: GPT-2's shape with a context of 2,048 tokens, on 300B tokens of FineWeb-Edu. First:

python fineweb.py --subset sample-100BT

Sizes, batch, learning rate and its cosine, which ends after 260B tokens, are GPT-3's (Brown et al. 2020, table 2.1 and
appendix B). What differs: every layer attends to all earlier tokens, where GPT-3's layers alternate between that and a
sparse, banded pattern; the batch has its full size from the start; and 100B tokens are read three times.
"""

data_dir = "edu_fineweb100B"
log_dir = "log/gpt3_small"

n_layer = 12
n_head = 12
n_embd = 768
block_size = T = 2048
B = 32
total_batch_size = 2**19

max_steps = 300 * 10**9 // total_batch_size
warmup_steps = 375 * 10**6 // total_batch_size
decay_steps = 260 * 10**9 // total_batch_size - warmup_steps
max_lr = 6e-4
min_lr = max_lr / 10

val_interval = hellaswag_interval = sample_interval = 5000
