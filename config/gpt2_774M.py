"""GPT-2 774M (774,030,080 parameters; OpenAI's gpt2-large) on 34B tokens of FineWeb-Edu. First:

python fineweb.py --subset sample-100BT --fraction 0.35

Learning rate and batch size are those of GPT-3 Large (Brown et al. 2020, table 2.1), the tokens those of the 1558M.
llm.c's script reads 150B tokens of FineWeb, which is filtered less.
"""

data_dir = "edu_fineweb100B"
log_dir = "log/gpt2_774M"

n_layer = 36
n_head = 20
n_embd = 1280
block_size = T = 1024
B = 16
total_batch_size = 2**19

max_steps = 64_000
warmup_steps = 375 * 10**6 // total_batch_size
max_lr = 2.5e-4
min_lr = max_lr / 10

val_interval = hellaswag_interval = sample_interval = 1000
