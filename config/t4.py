"""A 51M GPT on 92M tokens of FineWeb-Edu in float16, for the 16 GB of an NVIDIA T4, as Colab lends it. First:

python fineweb.py --fraction 0.01 --out data/t4

A T4 computes matrix products in float16 and not in bfloat16. At 30% of its peak, training takes 26 minutes (computed,
not measured). notebooks/colab_t4.ipynb runs all commands.
"""

data_dir = "data/t4"
log_dir = "log/t4"
dtype = "float16"

n_layer = 8
n_head = 8
n_embd = 512
block_size = T = 512
B = 32
total_batch_size = 4 * B * T

max_steps = 1400
warmup_steps = 100
max_lr = 1e-3
min_lr = max_lr / 10
val_interval = 200
val_tokens = 2048 * T
sample_interval = 200
sample_tokens = 64
checkpoint_interval = 200
hellaswag_interval = 0
