"""Token shards on disk: one-dimensional uint16 `.npy`, or llm.c's `.bin`; read by memory map, written atomically.

A folder holds `NAME_val_000000.npy`, `NAME_train_000001.npy`, … and `meta.json`, which says what the tokens are. A
folder made elsewhere has no `meta.json`: it is taken as `gpt2` and scanned once for what `meta.json` would say.
Reading by memory map means that a process owns no copy of the data, and opening 10^10 tokens takes milliseconds.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from system.errors import UserError
from system.files import AtomicFile

BIN_MAGIC, BIN_VERSION = 20240520, 1  # llm.c, dataloader.h
BIN_HEADER = 256  # int32 values
SUFFIXES = (".npy", ".bin")
META_VERSION = 1


@dataclass(frozen=True)
class TokenData:
    """A data folder, opened: the shards of each split (read-only uint16 arrays) and what `meta.json` says of them."""

    splits: dict[str, list[np.ndarray]]  # "train" and "val"
    tokenizer: str
    max_id: int
    meta: dict

    def tokens(self, split):
        return sum(len(shard) for shard in self.splits[split])


def open_data(data_dir, how_to_make):
    """Open every shard of a folder, checked: header, size, and (from `meta.json` or one scan) the largest id.

    `how_to_make` is the command that makes such a folder; an error names it. Raises `UserError`.
    """
    if progress_files(data_dir) and not os.path.exists(os.path.join(data_dir, "meta.json")):
        raise UserError(
            f"{data_dir} is unfinished: run the command that fills it once more (it goes on): {how_to_make}"
        )
    splits = {}
    for split in ("train", "val"):
        paths = list_shards(data_dir, split)
        if not paths:
            state = "holds no shard" if os.path.isdir(data_dir) else "does not exist; it should hold a shard"
            raise UserError(f"{data_dir} {state} with {split!r} in its name (.npy or .bin); make them: {how_to_make}")
        splits[split] = {path.name: open_shard(path) for path in paths}
    opened = splits["train"] | splits["val"]
    meta = read_meta(data_dir) or scan(data_dir, opened)
    entries = {entry["file"]: entry for entry in meta["shards"]}
    for name, tokens in opened.items():
        if name not in entries:
            raise UserError(f"{data_dir}/{name} is not listed in meta.json; move it away, or make the folder anew")
        if entries[name]["tokens"] != len(tokens):
            counts = f"{len(tokens):,} tokens, meta.json says {entries[name]['tokens']:,}"
            raise UserError(f"{data_dir}/{name} holds {counts}; make the folder anew: {how_to_make}")
    missing = sorted(set(entries) - set(opened))
    if missing:
        raise UserError(f"{data_dir}/{missing[0]} is listed in meta.json but gone; make the folder anew: {how_to_make}")
    max_id = max(entry["max_id"] for entry in meta["shards"])
    return TokenData({s: list(a.values()) for s, a in splits.items()}, meta["tokenizer"], max_id, meta)


def list_shards(data_dir, split):
    """The paths of a split's shards, in order of name: files with "train" or "val" in the name."""
    if not os.path.isdir(data_dir):
        return []
    return sorted(p for p in Path(data_dir).iterdir() if p.suffix in SUFFIXES and split_of(p.stem) == split)


def split_of(stem):
    """ "train" or "val", whichever stands last in a shard's name (`interval_train_000001` is no validation shard)."""
    return max(("train", "val"), key=stem.rfind) if "train" in stem or "val" in stem else None


def shard_name(name, index, suffix, split=None):
    """File name of shard `index`: shard 0 is the validation split, unless `split` says otherwise."""
    return f"{name}_{split or ('val' if index == 0 else 'train')}_{index:06d}{suffix}"


def progress_files(data_dir):
    """What says that a folder is still being filled: see progress.py."""
    return sorted(Path(data_dir).glob("progress*.json"))


def open_shard(path):
    """A shard's tokens as a read-only memory map, uint16 (n,). Raises `UserError` where header or size are wrong."""
    path = Path(path)
    try:
        if path.suffix == ".bin":
            offset, count = read_bin_header(path)
        else:
            offset, count = read_npy_header(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    expected, size = offset + 2 * count, path.stat().st_size
    if size != expected:
        what = "truncated" if size < expected else "too long"
        raise UserError(f"{path} is {what}: {size:,} bytes, its header says {expected:,}; make this shard anew")
    if count == 0:
        raise UserError(f"{path} holds no tokens; make this shard anew")
    return np.memmap(path, dtype=np.uint16, mode="r", offset=offset, shape=(count,))


def read_bin_header(path):
    """(offset of the tokens in bytes, their count) of an llm.c file."""
    header = np.fromfile(path, dtype="<i4", count=BIN_HEADER)
    if len(header) < BIN_HEADER or header[0] != BIN_MAGIC:
        found = header[0] if len(header) else "nothing"
        raise UserError(f"{path} is not a token shard: it should begin with {BIN_MAGIC}, found {found}")
    if header[1] != BIN_VERSION:
        raise UserError(f"{path} has version {header[1]}, expected {BIN_VERSION} (uint16 tokens, as for GPT-2)")
    return 4 * BIN_HEADER, int(header[2])


def read_npy_header(path):
    """(offset of the tokens in bytes, their count) of a NumPy file."""
    with open(path, "rb") as f:
        try:
            version = np.lib.format.read_magic(f)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(f)
        except OSError:
            raise
        except Exception as error:  # NumPy's parser raises whatever a damaged header makes it trip over
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path} is not a NumPy file ({reason}); make this shard anew") from error
        if dtype != np.dtype("<u2") or len(shape) != 1:
            raise UserError(f"{path} holds {dtype} of shape {shape}, expected one-dimensional uint16 tokens")
        return f.tell(), shape[0]


def write_shard(path, tokens):
    """Write tokens, uint16 (n,), so that its name only ever holds a whole shard. Returns its `meta.json` entry."""
    path, tokens = Path(path), np.ascontiguousarray(tokens, dtype="<u2")
    with AtomicFile(path) as f:
        if path.suffix == ".bin":
            header = np.zeros(BIN_HEADER, dtype="<i4")
            header[:3] = BIN_MAGIC, BIN_VERSION, len(tokens)
            f.write(header.tobytes())
        else:
            header = {"descr": "<u2", "fortran_order": False, "shape": tokens.shape}
            np.lib.format.write_array_header_1_0(f, header)
        f.write(tokens.data)
    return describe_shard(path, tokens)


def describe_shard(path, tokens):
    """A shard's entry in `meta.json`; the checksum is over the tokens, whatever the file's format."""
    return {
        "file": Path(path).name,
        "tokens": len(tokens),
        "max_id": int(tokens.max()),
        "sha256": hashlib.sha256(tokens).hexdigest(),
    }


def read_meta(data_dir):
    """`meta.json` of a folder, or None where there is none. Raises `UserError` where it can't be read."""
    path = Path(data_dir) / "meta.json"
    if not path.exists():
        return None
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        complete = {"tokenizer", "shards"} <= meta.keys()
    except (ValueError, AttributeError):
        complete = False
    if not complete:
        raise UserError(f"{path} is damaged: expected JSON with 'tokenizer' and 'shards'; make the folder anew")
    return meta


def write_meta(data_dir, meta):
    with AtomicFile(Path(data_dir) / "meta.json") as f:
        f.write(json.dumps({"format_version": META_VERSION} | meta, indent=1).encode() + b"\n")


def scan(data_dir, opened):
    """What `meta.json` would say of a folder made elsewhere; kept there if it may be, so that it is read once."""
    total = sum(len(tokens) for tokens in opened.values())
    entries = []
    with tqdm(total=total, unit="tok", unit_scale=True, desc=f"scanning {data_dir}") as bar:
        for name, tokens in sorted(opened.items()):
            entries.append(describe_shard(name, tokens))
            bar.update(len(tokens))
    meta = {"tokenizer": "gpt2", "source": "made elsewhere", "shards": entries}
    try:
        write_meta(data_dir, meta)
    except OSError:
        pass  # a read-only folder is scanned each time
    return meta
