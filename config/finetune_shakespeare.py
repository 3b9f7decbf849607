"""Fine-tune OpenAI's GPT-2 124M on Shakespeare's plays. First: python prepare.py shakespeare

A model of this size soon memorizes the plays, and its validation loss rises again: the run then stops, and
LOG_DIR/model_best.pt holds the weights with the lowest one.
"""

data_dir = "data/shakespeare"
log_dir = "log/finetune_shakespeare"
init_from = "gpt2"

B = 4
T = 1024
total_batch_size = 8 * B * T
dropout = 0.1

max_steps = 40  # about four epochs
warmup_steps = 0
schedule = "constant"
max_lr = 3e-5
weight_decay = 0.1
val_interval = 10
patience = 2
sample_interval = 10
sample_prompt = "ROMEO:\n"
checkpoint_interval = 0
hellaswag_interval = 0
