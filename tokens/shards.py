"""Token shards on disk: one-dimensional uint16 `.npy`, or llm.c's `.bin`. Memory-mapped to read, written atomically.

A folder holds `NAME_val_000000.npy`, `NAME_train_000001.npy`, … and `meta.json`, which describes them. A folder made
elsewhere has no `meta.json`: its tokens are taken as `gpt2`, and one scan creates the file.
With a memory map, a process holds no copy of the data, and 10^10 tokens open in milliseconds.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from system.boundary import foreign, read_json, require_fields, require_regular_file, show
from system.errors import UserError
from system.files import AtomicFile
from tokens.tokenizer import VOCAB_SIZES

BIN_MAGIC, BIN_VERSION = 20240520, 1  # llm.c, dataloader.h
BIN_HEADER = 256  # int32 values
SUFFIXES = (".npy", ".bin")
META_VERSION = 1
MAX_ID = 2**16 - 1  # what uint16 holds


@dataclass(frozen=True)
class TokenData:
    """An opened data folder: the shards of each split as read-only uint16 arrays, and the content of `meta.json`."""

    splits: dict[str, list[np.ndarray]]  # "train" and "val"
    tokenizer: str
    max_id: int
    meta: dict

    def tokens(self, split):
        """The number of tokens of a split."""
        return sum(len(shard) for shard in self.splits[split])


def open_data(data_dir, how_to_make):
    """Open the shards of a folder as `TokenData`, after checking header, size and token count of each.

    `how_to_make` is the command that makes such a folder, for error messages. Raises `UserError`.
    """
    if progress_files(data_dir) and not os.path.exists(os.path.join(data_dir, "meta.json")):
        raise UserError(f"{data_dir} is unfinished: run the command that fills it again, to continue it: {how_to_make}")
    splits = {}
    for split in ("train", "val"):
        paths = list_shards(data_dir, split)
        if not paths:
            state = "does not exist; it should hold a shard"
            if os.path.exists(data_dir):
                state = "holds no shard" if os.path.isdir(data_dir) else "is a file, expected a folder with a shard"
            raise UserError(f"{data_dir} {state} with {split!r} in its name (.npy or .bin); make them: {how_to_make}")
        splits[split] = {path.name: open_shard(path) for path in paths}
    shards = splits["train"] | splits["val"]
    meta = read_meta(data_dir)
    if meta is None:
        meta = scan(data_dir, shards)
    check_against_meta(data_dir, shards, meta, how_to_make)
    max_id = max(entry["max_id"] for entry in meta["shards"])
    return TokenData({s: list(a.values()) for s, a in splits.items()}, meta["tokenizer"], max_id, meta)


def check_against_meta(data_dir, shards, meta, how_to_make):
    """Raise `UserError` if the files and token counts of `shards` differ from those in `meta.json`."""
    entries = {entry["file"]: entry for entry in meta["shards"]}
    for name, tokens in shards.items():
        if name not in entries:
            raise UserError(f"{data_dir}/{name} is not listed in meta.json; move it away, or make the folder again")
        if entries[name]["tokens"] != len(tokens):
            counts = f"{len(tokens):,} tokens, meta.json says {entries[name]['tokens']:,}"
            raise UserError(f"{data_dir}/{name} holds {counts}; make the folder again: {how_to_make}")
    missing = sorted(set(entries) - set(shards))
    if missing:
        raise UserError(
            f"{data_dir}/{missing[0]} is listed in meta.json but missing; make the folder again: {how_to_make}"
        )


def list_shards(data_dir, split):
    """The paths of a split's shards, sorted by name."""
    if not os.path.isdir(data_dir):
        return []
    return sorted(p for p in Path(data_dir).iterdir() if p.suffix in SUFFIXES and split_of(p.stem) == split)


def split_of(stem):
    """ "train" or "val", whichever occurs last in a shard's name (`interval_train_000001` is training), or None."""
    return max(("train", "val"), key=stem.rfind) if "train" in stem or "val" in stem else None


def shard_name(name, index, suffix, split=None):
    """The file name of shard `index`. Unless `split` is given, shard 0 is the validation split."""
    if split is None:
        split = "val" if index == 0 else "train"
    return f"{name}_{split}_{index:06d}{suffix}"


def progress_files(data_dir):
    """The files that mark a folder as unfinished, see `text.progress.Progress`."""
    return sorted(Path(data_dir).glob("progress*.json"))


def open_shard(path):
    """A shard's tokens as a read-only memory map, uint16 (n,). Raises `UserError` if header or size are wrong."""
    path = Path(path)
    require_regular_file(path, "a shard")
    with foreign(path, "a NumPy file" if path.suffix == ".npy" else "a file of llm.c", "make this shard again"):
        offset, count = read_npy_header(path) if path.suffix == ".npy" else read_bin_header(path)
    expected, size = offset + 2 * count, path.stat().st_size
    if size != expected:
        problem = "truncated" if size < expected else "too long"
        raise UserError(f"{path} is {problem}: {size:,} bytes, its header says {expected:,}; make this shard again")
    if count == 0:
        raise UserError(f"{path} holds no tokens; make this shard again")
    return np.memmap(path, dtype=np.uint16, mode="r", offset=offset, shape=(count,))


def read_bin_header(path):
    """(byte offset of the tokens, number of tokens) of an llm.c file."""
    header = np.fromfile(path, dtype="<i4", count=BIN_HEADER)
    if len(header) < BIN_HEADER or header[0] != BIN_MAGIC:
        found = header[0] if len(header) else "nothing"
        raise UserError(f"{path} is not a token shard: it should begin with {BIN_MAGIC}, found {found}")
    if header[1] != BIN_VERSION:
        raise UserError(f"{path} has version {header[1]}, expected {BIN_VERSION} (uint16 tokens, as for GPT-2)")
    return 4 * BIN_HEADER, int(header[2])


def read_npy_header(path):
    """(byte offset of the tokens, number of tokens) of a NumPy file."""
    with open(path, "rb") as f:
        version = np.lib.format.read_magic(f)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(f)
        if dtype != np.dtype("<u2") or len(shape) != 1:
            raise UserError(f"{path} holds {dtype} of shape {shape}, expected one-dimensional uint16 tokens")
        return f.tell(), shape[0]


def write_shard(path, tokens):
    """Write tokens, uint16 (n,), atomically. Returns the shard's entry in `meta.json`."""
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
    """A shard's entry in `meta.json`. The checksum covers the tokens, so it does not depend on the file format."""
    return {
        "file": Path(path).name,
        "tokens": len(tokens),
        "max_id": int(tokens.max()),
        "sha256": hashlib.sha256(tokens).hexdigest(),
    }


def read_meta(data_dir):
    """The content of a folder's `meta.json`, or None if there is none. Raises `UserError` if it is damaged."""
    path = Path(data_dir) / "meta.json"
    if not os.path.lexists(path):
        return None
    meta = read_json(path, advice="make the folder again")
    require_fields(meta, path, tokenizer=str, shards=list)
    if meta["tokenizer"] not in VOCAB_SIZES:
        known = " or ".join(VOCAB_SIZES)
        raise UserError(f"{path}: tokenizer = {show(meta['tokenizer'])}, expected {known}; make the folder again")
    check_entries(meta["shards"], path)
    return meta


def check_entries(entries, path):
    """Raise `UserError` unless each of `entries`, read from the file at `path`, describes a shard."""
    for i, entry in enumerate(entries):
        place = f"{path}: shards[{i}]"
        if not isinstance(entry, dict):
            raise UserError(f"{place} = {show(entry)}, expected an object; make the folder again")
        require_fields(entry, place, file=str, tokens=int, max_id=int, sha256=str)
        if entry["tokens"] < 1 or not 0 <= entry["max_id"] <= MAX_ID:
            raise UserError(f"{place} = {show(entry)}: impossible numbers; make the folder again")


def write_meta(data_dir, meta):
    """Write `meta.json` atomically."""
    with AtomicFile(Path(data_dir) / "meta.json") as f:
        f.write(json.dumps({"format_version": META_VERSION} | meta, indent=1).encode() + b"\n")


def scan(data_dir, shards):
    """Read the shards (name → tokens) of a folder made elsewhere; returns the `meta.json` for it, and saves it."""
    total = sum(len(tokens) for tokens in shards.values())
    entries = []
    with tqdm(total=total, unit="tok", unit_scale=True, desc=f"scanning {data_dir}", disable=None) as bar:
        for name, tokens in sorted(shards.items()):
            entries.append(describe_shard(name, tokens))
            bar.update(len(tokens))
    meta = {"tokenizer": "gpt2", "source": "made elsewhere", "shards": entries}
    try:
        write_meta(data_dir, meta)
    except OSError:
        pass  # the folder is read-only: it is scanned again next time
    return meta
