"""Train a small GPT from scratch to reverse and to sort lists, asked in words: a minute on two CPU cores. First:

python -m scripts.list_task
python prepare.py data/lists/train.jsonl --chat --tokenizer byte --T 64 --out data/lists_chat
"""

data_dir = "data/lists_chat"
log_dir = "log/chat_lists"

n_layer = 2
n_head = 4
n_embd = 128
block_size = T = 64  # a conversation has about 55 bytes
B = 64
total_batch_size = B * T

max_steps = 400
warmup_steps = 30
optimizer = "muon"
max_lr = 6e-3
min_lr = 0
beta2 = 0.98
val_interval = 100
val_tokens = 64 * T
sample_interval = 100
sample_prompt = "Reverse the list a c b d"
sample_tokens = 16
num_samples = 1
checkpoint_interval = 0
compile = False  # compiling takes as long as training
hellaswag_interval = 0
