"""Train a small GPT on the source code of Python's standard library, as bytes: 1.5 to 3 minutes on two CPU cores.

`make quickstart` prepares the data, trains with this recipe, and shows samples and the loss plot.
"""

data_dir = "data/stdlib"
log_dir = "log/quickstart"

n_layer = 4
n_head = 4
n_embd = 192
block_size = T = 256
B = 8
total_batch_size = B * T

max_steps = 1050
warmup_steps = 30
optimizer = "muon"
muon_momentum = 0.9
schedule = "linear"
max_lr = 12e-3
min_lr = 0.0
beta2 = 0.98
val_interval = 250
val_tokens = 64 * T
sample_interval = 250
sample_prompt = "def "
sample_tokens = 160
num_samples = 2
checkpoint_interval = 250
compile = False  # compiling takes as long as training
hellaswag_interval = 0
