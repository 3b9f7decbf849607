"""Train a small GPT on Tiny Shakespeare, as bytes: one to two minutes on two CPU cores. First:

python prepare.py shakespeare --tokenizer byte

With so short a training time the loss depends mostly on the number of updates, hence Muon and a small batch. The weight
decay is high because training passes over the text more than once.
"""

data_dir = "data/shakespeare_byte"
log_dir = "log/shakespeare"

n_layer = 4
n_head = 4
n_embd = 192
block_size = T = 128
B = 16
total_batch_size = B * T

max_steps = 700
warmup_steps = 30
optimizer = "muon"
schedule = "linear"
max_lr = 7e-3
adamw_lr_scale = 2.0
min_lr = 0.0
weight_decay = 0.5
beta2 = 0.98
val_interval = 250
sample_interval = 250
sample_tokens = 200
num_samples = 2
checkpoint_interval = 250
compile = False  # compiling takes as long as training
hellaswag_interval = 0
