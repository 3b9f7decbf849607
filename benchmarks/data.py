"""Speed and memory of tokenizing text into shards, compared with one thread of tiktoken on the same documents."""

import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import loader
from benchmarks.measure import Row
from system.errors import UserError
from text.sources import stdlib_files
from text.worker_pool import cpu_count
from tokens.shards import read_meta
from tokens.tokenizer import get_tokenizer

TEXT_BYTES = 800_000_000  # enough that the start of the processes, which is included in the time, is a small part
ROW_GROUP = 1000  # documents, as in FineWeb
DOCUMENT = 4000  # characters, about FineWeb's mean


def run(settings):
    return [*loader.rows(), *tokenize_rows()]


def tokenize_rows():
    """The rows for speed and memory of `fineweb.py --source` on a parquet file."""
    name, baseline_name = "data/tokenize/gpt2", "bare tiktoken, 1 thread"
    try:
        tokenizer = get_tokenizer("gpt2")
    except UserError as error:
        return [Row(name, "MB/s", None, None, baseline_name, None, note=str(error))]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        documents = make_documents()
        copies = TEXT_BYTES // sum(len(text.encode()) for text in documents) + 1
        write_parquet(folder / "a.parquet", documents, copies)
        rates = [bare_rate(tokenizer, documents)]
        meta, peak = timed_fineweb(folder / "a.parquet", folder / "large")
        rates.append(bare_rate(tokenizer, documents))
        _, small_peak = timed_fineweb(folder / "a.parquet", folder / "small", "--fraction", "0.25")
        ours, bare = meta["bytes"] / meta["wall"], statistics.mean(rates)
    spread = abs(rates[0] / rates[1] - 1)
    note = f"{ours / bare / cpu_count():.2f} of {cpu_count()} cores' tiktoken; spread of the baseline {spread:.0%}"
    memory_note = f"all processes, less 2 shards; {small_peak / 1e6:,.0f} MB for a quarter of the text"
    return [
        Row(name, "MB/s", ours / 1e6, bare / 1e6, baseline_name, cpu_count() * bare / 1e6, note),
        Row("data/tokenize/memory", "MB", peak / 1e6, 500, "our limit", None, memory_note, lower_is_better=True),
    ]


def make_documents():
    """The standard library's text, cut into documents of FineWeb's mean length."""
    text = "".join(Path(path).read_text(encoding="utf-8") for path in stdlib_files())
    return [text[i : i + DOCUMENT] for i in range(0, len(text), DOCUMENT)]


def write_parquet(path, documents, copies):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": documents})
    with pyarrow.parquet.ParquetWriter(path, table.schema, compression="snappy") as writer:
        for _ in range(copies):
            writer.write_table(table, row_group_size=ROW_GROUP)


def bare_rate(tokenizer, documents):
    """Bytes/s of encoding the documents one by one with tiktoken, in one thread."""
    start = time.perf_counter()
    for text in documents:
        tokenizer.encode(text)
    return sum(len(text.encode()) for text in documents) / (time.perf_counter() - start)


def timed_fineweb(source, out, *args):
    """Run fineweb.py; returns `meta.json` with the wall time, and the peak memory of all processes less two shards."""
    script = Path(__file__).parents[1] / "fineweb.py"
    command = [sys.executable, script, "--source", source, "--out", out, *args]
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, memory_of(process.pid))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
    wall = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"fineweb.py ended with exit code {process.returncode}")
    meta = read_meta(out)
    shard_bytes = 2 * max(entry["tokens"] for entry in meta["shards"])
    return meta | {"wall": wall}, peak - 2 * shard_bytes


def memory_of(pid):
    """Bytes of memory of a process and its descendants, shared pages counted once (PSS); 0 without /proc."""
    total = 0
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += 1024 * int(line.split()[1])
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            total += memory_of(int(child))
    return total
