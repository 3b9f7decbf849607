"""GPT-2 774M on 10B tokens of FineWeb-Edu.

Learning rate and batch size are those of GPT-3 Large (Brown et al. 2020, table 2.1).
"""

data_dir = "edu_fineweb10B"
log_dir = "log/gpt2_774M"

n_layer = 36
n_head = 20
n_embd = 1280
block_size = T = 1024
B = 16
total_batch_size = 2**19

max_steps = 10**10 // total_batch_size
warmup_steps = 375 * 10**6 // total_batch_size
max_lr = 2.5e-4
min_lr = max_lr / 10
