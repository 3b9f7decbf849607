"""Flip bytes in files that preparation and training read, and check that each ends well or with one line.

python tests/torture_preparation.py --flips 500

No traceback, no file that takes more than 10 s, and no crash that does not name its file.
"""

import argparse
import collections
import contextlib
import io
import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

import numpy as np
from corpus import FILE_BYTES, make_documents

from system.errors import UserError
from text.documents import Described, cut_file, describe_file
from text.progress import Progress, open_progress
from text.worker_pool import map_in_order
from tokens.inspection import inspect
from tokens.shards import shard_name, write_meta, write_shard

LONGEST_S = 10.0


def damage(data, rng):
    """`data` with up to four bytes changed, or cut off at a random place."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        end = rng.random() < 0.5  # half of the flips hit the last kilobyte, where formats keep their tables
        data[rng.randrange(max(0, len(data) - 1000) if end else 0, len(data))] ^= 1 << rng.randrange(8)
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.1 else data)


def read_text_file(path):
    """Read all texts of a source, as a worker process does. Returns how it ended."""
    try:
        for piece, _ in cut_file(describe_file(path)):
            piece.texts()
        return "read"
    except UserError as error:
        return check_line(error, path)


def check_line(error, path):
    """How a file was refused: in one line that names it, or in some other way."""
    text = str(error)
    return "refused" if "\n" not in text and len(text) < 1000 and Path(path).name in text else f"UNCLEAR: {text}"


def flip_source(kind, path, content, rng):
    """Damage a file of text, and read it in a worker process."""
    path.write_bytes(damage(content, rng))
    workers = 1 if kind == "parquet" else 0
    try:
        [(_, ending)] = map_in_order(read_text_file, [Described(str(path))], workers)
        return ending
    except UserError as error:  # the worker process has crashed
        return "crashed" if path.name in str(error) else f"UNNAMED: {error}"


def flip_folder(folder, name, content, rng):
    """Damage one file of a folder of shards, and read the folder as --inspect, training and preparation do."""
    (folder / name).write_bytes(damage(content, rng))
    try:
        if name.startswith("progress"):
            open_progress(folder, json.loads((folder / "request").read_text()))
        else:
            inspect(folder)
        ending = "read"
    except UserError as error:
        ending = check_line(error, folder)
    (folder / name).write_bytes(content)
    return ending


def make_folder(folder, suffix):
    """A folder of shards."""
    folder.mkdir()
    ids = np.array([256, *b"some text, " * 50], np.uint16)
    entries = [write_shard(folder / shard_name("a", i, suffix), ids) for i in range(2)]
    write_meta(folder, {"tokenizer": "byte", "source": "s", "shards": entries})
    return folder


def make_progress(folder):
    folder.mkdir()
    request = {"source": "s", "tokenizer": "byte", "format": "npy", "val": 0.1, "files": "f"}
    (folder / "request").write_text(json.dumps(request))
    entry = {"file": "a_val_000000.npy", "tokens": 9, "max_id": 7, "sha256": "0"}
    Progress(folder, request, shards=[entry], position=[3], skip=2).save()
    return folder


def make_cases(folder):
    """Name → function(rng) that damages one file and tells how reading it ended."""
    cases = {}
    texts = make_documents(300)
    contents = {"txt": "".join(texts).encode()} | {kind: FILE_BYTES[kind](texts) for kind in FILE_BYTES}
    for kind, content in contents.items():
        path = folder / f"a.{kind}"
        cases[kind] = lambda rng, kind=kind, path=path, content=content: flip_source(kind, path, content, rng)
    folders = [(make_folder(folder / suffix[1:], suffix), f"a_train_000001{suffix}") for suffix in (".npy", ".bin")]
    folders += [(folders[0][0], "meta.json"), (make_progress(folder / "unfinished"), "progress.json")]
    for place, name in folders:
        content = (place / name).read_bytes()
        cases[name] = lambda rng, place=place, name=name, content=content: flip_folder(place, name, content, rng)
    return cases


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--flips", type=int, default=500, help="of each kind of file")
    parser.add_argument("--seed", type=int, default=1)
    settings = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        for kind, flip in make_cases(Path(name)).items():
            rng, endings = random.Random(settings.seed), collections.Counter()
            for _ in range(settings.flips):
                start = time.monotonic()
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    ending = flip(rng)
                endings[ending if time.monotonic() - start < LONGEST_S else "TOO SLOW"] += 1
            failed += sum(count for ending, count in endings.items() if ending not in ("read", "refused", "crashed"))
            print(f"{kind}: {dict(endings)}", flush=True)
    print(f"{failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
