"""From conversations to a model that answers questions which it has not seen, by the commands of docs/chat.md."""

from helpers import ROOT

import prepare
import train_gpt2
from scripts import list_task


def test_chat_model_answers_questions_that_were_held_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(list_task, "LETTERS", "abcdef")
    monkeypatch.setattr(list_task, "LENGTHS", (2, 3))
    lists, shards, log_dir = (str(tmp_path / name) for name in ("lists", "shards", "log"))
    list_task.main(["--folder", lists, "--count=3000", "--held_out=30"])
    prepare.main([f"{lists}/train.jsonl", "--chat", "--tokenizer=byte", "--T=64", "--out", shards])
    smaller = ["--n_embd=64", "--B=16", "--total_batch_size=1024", "--max_steps=300", "--sample_interval=300"]
    data = ["--data_dir", shards, "--log_dir", log_dir, "--device=cpu"]
    train_gpt2.main([str(ROOT / "config" / "chat_lists.py"), *data, *smaller])
    assert "[Sample 1] Reverse the list a c b d → " in capsys.readouterr().out
    list_task.main(["--folder", lists, "--model", log_dir])
    printed = capsys.readouterr().out
    assert float(printed.partition("=")[2].split()[0]) >= 0.95, printed
