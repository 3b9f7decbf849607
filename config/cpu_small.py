"""GPT-2 124M with a batch small enough for a laptop: to watch the full-size model start to learn, not to finish."""

data_dir = "edu_fineweb10B"
log_dir = "log/cpu_small"

B = 4
T = 128
total_batch_size = 8192

max_steps = 2000
warmup_steps = 100
val_interval = 100
val_tokens = 20 * 4 * 128
sample_interval = 100
num_samples = 2
checkpoint_interval = 100
hellaswag_interval = 0
