"""GPT-2 350M (354,823,168 parameters; OpenAI's gpt2-medium) on 31B tokens of FineWeb-Edu. First:

python fineweb.py --subset sample-100BT --fraction 0.35

Learning rate and batch size are those of GPT-3 Medium (Brown et al. 2020, table 2.1), the tokens those of llm.c's
script.
"""

data_dir = "edu_fineweb100B"
log_dir = "log/gpt2_350M"

n_layer = 24
n_head = 16
n_embd = 1024
block_size = T = 1024
B = 32
total_batch_size = 2**19

max_steps = 60_000
warmup_steps = 375 * 10**6 // total_batch_size
max_lr = 3e-4
min_lr = max_lr / 10

val_interval = hellaswag_interval = sample_interval = 1000
