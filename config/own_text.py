"""Train a small GPT on your own text, on a CPU or a small GPU: a few minutes for a book. First:

python prepare.py book.txt --tokenizer byte --out data/mine

The banner and `--dry_run` say how often the text is read: below 20 times is good, so give more text, or lower max_steps
for less. With more than about 50 MB, raise n_layer, n_embd and max_steps. Tokens of --tokenizer gpt2 work too; their
large vocabulary makes a step several times slower, and pays with text of 100 MB and more.
"""

data_dir = "data/mine"
log_dir = "log/mine"

n_layer = 4
n_head = 4
n_embd = 192
block_size = T = 256
B = 8
total_batch_size = B * T

max_steps = 800
warmup_steps = 30
optimizer = "muon"
max_lr = 6e-3
min_lr = 6e-5
beta2 = 0.98
weight_decay = 0.5  # high, because a short text is read several times
val_interval = 200
val_tokens = 64 * T
sample_interval = 200
sample_tokens = 160
num_samples = 2
checkpoint_interval = 200
compile = False  # compiling takes as long as training
hellaswag_interval = 0
