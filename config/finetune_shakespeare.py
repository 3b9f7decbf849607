"""Fine-tune OpenAI's GPT-2 124M on Shakespeare's plays. First: python prepare.py shakespeare"""

data_dir = "data/shakespeare"
log_dir = "log/finetune_shakespeare"
init_from = "gpt2"

B = 4
T = 1024
total_batch_size = 8 * B * T
dropout = 0.1

max_steps = 40  # about four epochs; with more it memorizes the plays
warmup_steps = 0
schedule = "constant"
max_lr = 3e-5
weight_decay = 0.1
val_interval = 10
sample_interval = 10
sample_prompt = "ROMEO:\n"
checkpoint_interval = 0
hellaswag_interval = 0
