"""A tiny model on generated data: checks in seconds, on any device, that everything works."""

data_dir = "synthetic"
log_dir = "log/debug"

n_layer = 2
n_head = 2
n_embd = 64
block_size = T = 64
B = 8
total_batch_size = 2 * B * T

max_steps = 60
warmup_steps = 5
max_lr = 1e-3
min_lr = 1e-4
val_interval = 20
val_tokens = 2048
sample_interval = 30
sample_tokens = 40
checkpoint_interval = 30
hellaswag_interval = 0
