"""Execute the notebooks on a tiny run. They are stored without outputs."""

import math
import re

import pytest
from helpers import ROOT, TEXT, TINY, as_flags

from train_gpt2 import train

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path):
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.fixture(scope="module")
def kernel():
    pytest.importorskip("ipykernel")
    return pytest.importorskip("nbclient")


def run_notebook(kernel, name, parameters):
    """Execute a notebook with other `parameters`, {name: value}, but no cell that installs; returns it with outputs."""
    import nbformat

    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert {line.split(" = ")[0] for line in cell.source.splitlines()} == set(parameters)
    cell.source = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    notebook.cells = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", [])]
    client = kernel.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": ROOT / "notebooks"}})
    return client.execute()


def count_figures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def printed_text(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def test_notebook_plot_log_draws_a_run(kernel, make_run, tmp_path):
    train(make_run(max_steps=3))
    done = run_notebook(kernel, "plot_log.ipynb", {"LOG_DIRS": [str(tmp_path / "log")], "X": "tokens"})
    assert count_figures(done) == 1
    assert "val" in printed_text(done)


def test_notebook_look_inside_draws_a_checkpoint(kernel, make_run, tmp_path):
    train(make_run(max_steps=2))
    checkpoint = str(tmp_path / "log" / "model_00002.pt")
    done = run_notebook(kernel, "look_inside.ipynb", {"MODEL": checkpoint, "PROMPT": "3 plus 4 makes"})
    assert count_figures(done) == 5
    text = printed_text(done)
    first_loss = float(re.search(r"ln 257 = 5.549, random weights on random tokens: ([\d.]+)", text)[1])
    assert first_loss == pytest.approx(math.log(257), abs=0.05)
    assert "'3' -> ' '" in re.sub(" +", " ", text)
    assert "the head is the embedding: True" in text
    unscaled, scaled = map(float, re.findall(r"the stream's standard deviation is ([\d.]+)", text))
    assert unscaled == pytest.approx(96**0.5, rel=0.1)
    assert scaled == pytest.approx(1.0, rel=0.1)
    assert "4 parts, divided: 1.000000 times" in text
    assert "4 parts, not divided: 4.000000 times" in text


def test_notebook_colab_t4_prepares_trains_and_samples(kernel, tmp_path):
    (tmp_path / "book.txt").write_text(TEXT, encoding="utf-8")
    settings = TINY | {"dtype": "float32", "tokenizer": "byte", "compile": False, "sample_tokens": 4}
    parameters = {
        "REPOSITORY": "",
        "PREPARE": f"prepare.py {tmp_path / 'book.txt'} --tokenizer byte",
        "DATA_DIR": str(tmp_path / "data"),
        "LOG_DIR": str(tmp_path / "log"),
        "FLAGS": " ".join(as_flags(settings)),
        "PROMPT": "3 plus 4 makes",
    }
    done = run_notebook(kernel, "colab_t4.ipynb", parameters)
    assert (tmp_path / "log" / "model_00005.pt").exists()
    assert count_figures(done) == 1
    assert "3 plus 4 makes" in printed_text(done)


def test_notebook_layers_by_hand_agrees_with_autograd(kernel):
    text = printed_text(run_notebook(kernel, "layers_by_hand.ipynb", {"SEED": 1}))
    differences = [float(number) for number in re.findall(r"largest difference (\S+)", text)]
    assert len(differences) >= 17  # four layers and the online softmax
    assert max(differences) < 1e-5
    assert "fused GELU" in text or "skipped: Triton is not installed" in text
