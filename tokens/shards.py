"""Token shards on disk: one-dimensional uint16 `.npy`, or llm.c's `.bin`. Memory-mapped to read, written atomically.

A folder holds `NAME_val_000000.npy`, `NAME_train_000001.npy`, … and `meta.json`, which describes them. A folder made
elsewhere has no `meta.json`: its tokens are taken as `gpt2`, and one scan creates the file.
A process holds no copy of the data. Opening a folder compares the size of each file with `meta.json`; a file is opened
when its tokens are first used, and its header checked then. So 10^13 tokens in 10^5 shards open in seconds.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from system.boundary import foreign, read_json, require_fields, require_regular_file, show
from system.errors import RankError, UserError, first_line
from system.files import AtomicFile
from tokens.tokenizer import VOCAB_SIZES

BIN_MAGIC, BIN_VERSION = 20240520, 1  # llm.c, dataloader.h
BIN_HEADER = 256  # int32 values
MASK_SUFFIX = ".mask"
META_VERSION = 1
MAX_ID = 2**16 - 1  # what uint16 holds
HEADER_BYTES = {".npy": 128, ".bin": 4 * BIN_HEADER}  # as written here and by NumPy ≥ 1.14; older files have others
MAX_MAPPED = 128  # a map holds a file descriptor, and macOS allows a process 256; Linux allows 65,530 maps


class Shards(Sequence):
    """The shards of a split in order. `shards[i]` is one as a read-only uint16 array (n,), mapped while it is in use.

    A file is checked when it is opened. Of many shards that is when its tokens are first used, perhaps on one rank:
    what is wrong with it is a `RankError`.
    """

    def __init__(self, paths, lengths, max_mapped=MAX_MAPPED):
        """`paths` and `lengths`: of each shard, its file and the number of its tokens by `meta.json`."""
        self.paths, self.lengths = paths, np.array(lengths, np.int64)
        self.offsets = np.zeros(len(paths), np.int32)  # of the tokens in each file, in bytes; 0: not read yet
        self.max_mapped, self.mapped = max_mapped, {}  # number of a shard → its tokens: the first that `read` used

    @classmethod
    def in_memory(cls, arrays):
        shards = cls(["the data"] * len(arrays), [len(tokens) for tokens in arrays])
        shards.mapped = dict(enumerate(arrays))
        return shards

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        i = range(len(self))[i]
        return self.mapped[i] if i in self.mapped else self.map(i)

    def read(self, i, start, stop):
        """Tokens `start` … `stop - 1` of shard i, uint16 (stop - start,).

        The first shards that are used stay mapped. The others are read from their files: training takes the windows of
        all shards in a random order, so they would rarely be mapped when needed, and mapping one to read a window
        takes several times as long as reading it.
        """
        if i not in self.mapped and len(self.mapped) < self.max_mapped:
            self.mapped[i] = np.asarray(self.map(i))  # a plain view: slicing a np.memmap is slow
        if i in self.mapped:
            return self.mapped[i][start:stop]
        if not self.offsets[i]:
            self.offsets[i] = self.locate(i)
        try:
            with open(self.paths[i], "rb", buffering=0) as f:
                f.seek(int(self.offsets[i]) + 2 * start)
                data = f.read(2 * (stop - start))
        except OSError as error:
            raise RankError(f"{self.paths[i]}: {first_line(error)}; expected a shard") from error
        if len(data) < 2 * (stop - start):
            self.locate(i)  # says what is wrong with a file that has changed
        return np.frombuffer(data, "<u2")

    def map_few(self):
        """Map all shards now, unless they are many, so that a damaged one is found before anything else begins."""
        if len(self) <= self.max_mapped:
            self.mapped = {i: np.asarray(self.map(i)) for i in range(len(self))}

    def map(self, i):
        return np.memmap(self.paths[i], "<u2", "r", self.locate(i), (int(self.lengths[i]),))

    def locate(self, i):
        """The byte offset of the tokens in the file of shard i, after checking it."""
        try:
            offset, count = locate_tokens(self.paths[i])
            check_count(self.paths[i], count, self.lengths[i])
        except UserError as error:
            raise RankError(str(error)) from error
        return offset


@dataclass(frozen=True)
class TokenData:
    """An opened data folder: the shards of each split, and the content of `meta.json`."""

    splits: dict[str, Shards]  # "train" and "val"
    tokenizer: str
    max_id: int
    meta: dict
    counted: dict[str, np.ndarray] | None = None  # by split: which tokens the loss counts, bool (n,); None: all

    @property
    def chat_window(self):
        """Tokens in a window of whole conversations, or None if the folder holds plain text."""
        return self.meta["chat"]["T"] if "chat" in self.meta else None

    def tokens(self, split):
        """The number of tokens of a split."""
        return int(self.splits[split].lengths.sum())


def open_data(data_dir, how_to_make):
    """Open the shards of a folder as `TokenData`, after comparing their names and sizes with `meta.json`.

    The headers of a few shards are checked too; of many, each is checked when its tokens are first used.

    `how_to_make` is the command that makes such a folder, for error messages. Raises `UserError`.
    """
    if progress_files(data_dir) and not os.path.exists(os.path.join(data_dir, "meta.json")):
        raise UserError(f"{data_dir} is unfinished: run the command that fills it again, to continue it: {how_to_make}")
    sizes = {split: shard_sizes(data_dir, split) for split in ("train", "val")}
    for split, found in sizes.items():
        if not found:
            state = "does not exist; it should hold a shard"
            if os.path.exists(data_dir):
                state = "holds no shard" if os.path.isdir(data_dir) else "is a file, expected a folder with a shard"
            raise UserError(f"{data_dir} {state} with {split!r} in its name (.npy or .bin); make them: {how_to_make}")
    meta = read_meta(data_dir)
    if meta is None:
        meta = scan(data_dir, sizes["train"] | sizes["val"])
    lengths = {entry["file"]: entry["tokens"] for entry in meta["shards"]}
    check_against_meta(data_dir, sizes["train"] | sizes["val"], lengths, how_to_make)
    splits = {
        split: Shards([os.path.join(data_dir, name) for name in found], [lengths[name] for name in found])
        for split, found in sizes.items()
    }
    for shards in splits.values():
        shards.map_few()
    max_id = max(entry["max_id"] for entry in meta["shards"])
    counted = {split: read_masks(shards) for split, shards in splits.items()} if "chat" in meta else None
    return TokenData(splits, meta["tokenizer"], max_id, meta, counted)


def check_against_meta(data_dir, sizes, lengths, how_to_make):
    """Raise `UserError` if the files in a folder differ from those in its `meta.json`.

    `sizes`: name → bytes of the files. `lengths`: name → tokens by `meta.json`. Opens those of an unexpected size only.
    """
    for name, size in sizes.items():
        if name not in lengths:
            raise UserError(f"{data_dir}/{name} is not listed in meta.json; move it away, or make the folder again")
        if size != HEADER_BYTES[os.path.splitext(name)[1]] + 2 * lengths[name]:
            path = os.path.join(data_dir, name)
            check_count(path, locate_tokens(path)[1], lengths[name])
    missing = min(lengths.keys() - sizes.keys(), default=None)
    if missing is not None:
        raise UserError(
            f"{data_dir}/{missing} is listed in meta.json but missing; make the folder again: {how_to_make}"
        )


def check_count(path, count, expected):
    """Raise `UserError` if a shard holds another number of tokens than `meta.json` says."""
    if count != expected:
        raise UserError(f"{path} holds {count:,} tokens, meta.json says {expected:,}; make the folder again")


def list_shards(data_dir, split):
    """The paths of a split's shards, sorted by name."""
    return [Path(data_dir, name) for name in shard_sizes(data_dir, split)]


def shard_sizes(data_dir, split):
    """The files of a split's shards, sorted: name → size in bytes, -1 for what is no regular file."""
    if not os.path.isdir(data_dir):
        return {}
    sizes = {}
    with os.scandir(data_dir) as entries:
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            if suffix in HEADER_BYTES and split_of(stem) == split:
                sizes[entry.name] = entry.stat().st_size if entry.is_file() else -1
    return dict(sorted(sizes.items()))


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
    offset, count = locate_tokens(path)
    return np.memmap(path, dtype=np.uint16, mode="r", offset=offset, shape=(count,))


def locate_tokens(path):
    """(byte offset, number) of the tokens in the file of a shard. Raises `UserError` if header or size are wrong."""
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
    return offset, count


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


def write_masked_shard(path, tokens, counted):
    """Write tokens, uint16 (n,), and beside them a mask: which of them the loss counts, bool (n,).

    The mask is a file of one byte a token, 0 or 1. It is written first, so that no shard is without its mask. Returns
    the shard's entry in `meta.json`.
    """
    mask = np.ascontiguousarray(counted, np.uint8)
    with AtomicFile(mask_path(path)) as f:
        f.write(mask.data)
    return write_shard(path, tokens) | {"mask_sha256": hashlib.sha256(mask).hexdigest()}


def read_masks(shards):
    """Which tokens of a split the loss counts, bool (n,): the masks of its shards, joined."""
    masks = [read_mask(mask_path(path), length) for path, length in zip(shards.paths, shards.lengths, strict=True)]
    return np.concatenate(masks) != 0


def read_mask(path, length):
    """A mask as bytes, uint8 (length,). Raises `UserError` unless the file has that many."""
    require_regular_file(path, "a mask of a shard")
    with foreign(path, "a mask of a shard", "make the folder again"):
        mask = np.fromfile(path, np.uint8)
    if len(mask) != length:
        raise UserError(f"{path} has {len(mask):,} bytes, its shard {length:,} tokens; make the folder again")
    return mask


def mask_path(path):
    """Where the mask of the shard at `path` is: `chat_train_000001.mask`."""
    return Path(path).with_suffix(MASK_SUFFIX)


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
    if "chat" in meta:
        require_fields(meta, path, chat=dict)
        require_fields(meta["chat"], f"{path}: chat", T=int, tokens=int, counted=int, cut=int)
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


def scan(data_dir, names):
    """Read the shards of a folder made elsewhere; returns the `meta.json` for it, and saves it."""
    paths = [os.path.join(data_dir, name) for name in sorted(names)]
    total = sum(locate_tokens(path)[1] for path in paths)
    entries = []
    with tqdm(total=total, unit="tok", unit_scale=True, desc=f"scanning {data_dir}", disable=None) as bar:
        for path in paths:
            tokens = open_shard(path)
            entries.append(describe_shard(path, tokens))
            bar.update(len(tokens))
    meta = {"tokenizer": "gpt2", "source": "made elsewhere", "shards": entries}
    try:
        write_meta(data_dir, meta)
    except OSError:
        pass  # the folder is read-only: it is scanned again next time
    return meta
