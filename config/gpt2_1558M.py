"""GPT-2 1558M (1,557,611,200 parameters; OpenAI's gpt2-xl) on 34B tokens of FineWeb-Edu. First:

python fineweb.py --subset sample-100BT --fraction 0.35

Learning rate and batch size are those of GPT-3 XL (Brown et al. 2020, table 2.1), the tokens those of llm.c's script.
"""

data_dir = "edu_fineweb100B"
log_dir = "log/gpt2_1558M"

n_layer = 48
n_head = 25
n_embd = 1600
block_size = T = 1024
B = 8
total_batch_size = 2**20

max_steps = 32_000
warmup_steps = 375 * 10**6 // total_batch_size
max_lr = 2e-4
min_lr = max_lr / 10

val_interval = hellaswag_interval = sample_interval = 1000
