"""Fine-tune OpenAI's GPT-2 124M on conversations, with the loss on the assistant's answers only. First:

python prepare.py chats.jsonl --chat --out data/chat
"""

data_dir = "data/chat"
log_dir = "log/chat"
init_from = "gpt2"

B = 4
T = 1024
total_batch_size = 8 * B * T
dropout = 0.1

max_steps = 300  # at most; the patience ends it when the validation loss no longer falls
warmup_steps = 10
schedule = "linear"
max_lr = 5e-5
min_lr = 0
weight_decay = 0.1
val_interval = 20
patience = 3
sample_interval = 20
sample_prompt = "What is the capital of France?"
num_samples = 2
checkpoint_interval = 0
hellaswag_interval = 0
