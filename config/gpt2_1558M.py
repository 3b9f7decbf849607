"""GPT-2 1558M on 10B tokens of FineWeb-Edu.

Learning rate and batch size are those of GPT-3 XL (Brown et al. 2020, table 2.1).
"""

data_dir = "edu_fineweb10B"
log_dir = "log/gpt2_1558M"

n_layer = 48
n_head = 25
n_embd = 1600
block_size = T = 1024
B = 8
total_batch_size = 2**20

max_steps = 10**10 // total_batch_size
warmup_steps = 375 * 10**6 // total_batch_size
max_lr = 2e-4
min_lr = max_lr / 10
