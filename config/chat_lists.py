"""Train a small GPT to reverse and to sort lists, asked in words: two minutes on two CPU cores. First:

python -m scripts.list_task
python prepare.py data/lists/train.jsonl --chat --tokenizer byte --T 256 --out data/lists_chat
"""

data_dir = "data/lists_chat"
log_dir = "log/chat_lists"

n_layer = 4
n_head = 4
n_embd = 128
block_size = T = 256
B = 16
total_batch_size = B * T

max_steps = 600
warmup_steps = 30
optimizer = "muon"
max_lr = 6e-3
min_lr = 0
beta2 = 0.98
val_interval = 100
val_tokens = 64 * T
sample_interval = 200
sample_prompt = "Reverse the list a c b d"
num_samples = 1
checkpoint_interval = 0
compile = False  # compiling takes as long as training
hellaswag_interval = 0
