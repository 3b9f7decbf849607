"""What a folder of shards records while it is filled, so that an interrupted command continues to the same bytes.

While shards are missing, `progress.json` records the request, the finished shards, and where in the text the next shard
begins. `meta.json` replaces it when all are written: a folder with `progress.json` and no `meta.json` is unfinished.
With `--overwrite`, older shards are deleted when the first new one is ready to be written.
"""

import contextlib
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from system.boundary import read_json, require_fields, show
from system.errors import UserError
from system.files import AtomicFile
from tokens.shards import check_entries, list_shards, mask_path, progress_files, read_meta

SHARD_TOKENS = 100_000_000
LARGEST_SHARD = 2**31 - 1  # tokens; llm.c stores the number in an int32
ALTERNATIVES = "give another --out, or --overwrite to replace them"


@dataclass
class Progress:
    """What `progress.json` holds (`out` excepted): the state from which an interrupted command continues."""

    out: Path
    request: dict  # the settings that determine the shards; has "source", "tokenizer" and "format"
    worker: int = 0
    num_workers: int = 1
    shard_tokens: int = SHARD_TOKENS
    plan: dict = field(default_factory=dict)  # what a restart must not compute differently, such as the list of files
    shards: list = field(default_factory=list)  # entries of finished shards, as in `meta.json`
    position: list | None = None  # of the item in which the next shard begins
    skip: int = 0  # tokens of that item that are in finished shards
    share: float = 0.0  # of the work, done
    documents: int = 0
    bytes: int = 0
    seconds: float = 0.0
    finished: bool = False
    replaces: bool = False  # whether older shards are still to be deleted

    @property
    def path(self):
        tail = f"_{self.worker:05d}_of_{self.num_workers:05d}" if self.num_workers > 1 else ""
        return self.out / f"progress{tail}.json"

    @classmethod
    def load(cls, path):
        values = read_json(path, advice=ALTERNATIVES)
        check_progress(values, path)
        return cls(path.parent, **values)

    def save(self):
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "out"}
        with writing(self.path), AtomicFile(self.path) as f:
            f.write(json.dumps(values).encode())

    def save_plan(self):
        """Save before the first shard, unless there are older shards: they stay until `begin`."""
        if not self.replaces:
            self.save()

    def begin(self):
        """Save, and delete the shards that are replaced. For when the first new shard is ready to be written.

        Saved first: that fails without harm on a full disk, and a killed command's successor goes on deleting.
        """
        dataclasses.replace(self, documents=0, bytes=0, share=0.0).save()  # what is counted is in no shard yet
        if self.replaces:
            delete_shards(self.out, keep=self.path)
            self.replaces = False

    def shard_token_count(self):
        """Tokens in finished shards."""
        return sum(entry["tokens"] for entry in self.shards)


def check_progress(values, path):
    """Raise `UserError` unless `values` are the fields of a `Progress`, each of its type."""
    types = {f.name: f.type for f in dataclasses.fields(Progress) if f.name != "out"}
    for name, value in {"request": None, **values}.items():
        wanted = int | float if types.get(name) is float else types.get(name)
        if wanted is None or not isinstance(value, wanted):
            raise UserError(f"{path} is damaged ({name}: {show(value)}); {ALTERNATIVES}")
    require_fields(values["request"], path, source=str, tokenizer=str, format=str)
    check_entries(values.get("shards", []), path)
    if not 1 <= values.get("shard_tokens", 1) <= LARGEST_SHARD:
        raise UserError(f"{path} is damaged (shard_tokens: {show(values['shard_tokens'])}); {ALTERNATIVES}")


@contextlib.contextmanager
def writing(path):
    """Raise `UserError` for an `OSError` in the body, which writes `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): change that and run the same command again, which"
            " continues, or give another --out"
        ) from error


# ---- before: what does the folder hold? ----


def read_finished(out, request):
    """The content of `meta.json` if `out` holds the finished result of `request`, else None.

    Raises `UserError` if it holds the result of another request.
    """
    meta = read_meta(out)
    if meta is not None:
        check_same_request(out, meta.get("request"), json.loads(json.dumps(request)), "already holds")
        number = (int, float)
        path = Path(out) / "meta.json"
        require_fields(meta, path, documents=int, tokens=int, bytes_per_token=number, seconds=number)
    return meta


def open_progress(out, request, overwrite=False, worker=0, num_workers=1):
    """The `Progress` to start or continue filling `out` with; None if a finished result of this request is there.

    Raises `UserError` if `out` holds anything else, unless `overwrite`: then `Progress.begin` deletes its shards.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, expected a folder to write shards to; give another --out")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    new = Progress(out, json.loads(json.dumps(request)), worker, num_workers)
    if overwrite:
        new.replaces = bool(shard_files(out))
        return new
    if read_finished(out, request) is not None:
        for path in progress_files(out):  # left by a process that was killed after writing meta.json
            path.unlink(missing_ok=True)
        return None
    for path in progress_files(out):
        found = Progress.load(path)
        if found.request != new.request and not found.shards:
            path.unlink()  # interrupted before its first shard
            continue
        check_same_request(out, found.request, new.request, "holds the beginning of")
        if path == new.path:
            return found
    check_no_foreign_shards(out)
    return new


def check_same_request(out, old, new, verb):
    """Raise `UserError` if the shards in `out` were requested with other settings."""
    if old == new:
        return
    if not old:
        raise UserError(f"{out} {verb} shards that were made elsewhere; {ALTERNATIVES}")
    if not isinstance(old, dict):
        raise UserError(f"{out}/meta.json is damaged (request: {show(old)}); {ALTERNATIVES}")
    keys = [key for key in old | new if old.get(key) != new.get(key)]
    if "source" in keys:
        difference = ""
    elif keys == ["files"]:
        difference = ", whose files have changed since"
    else:
        difference = " with " + ", ".join(f"{key} {old.get(key)}" for key in keys if key != "files")
    raise UserError(f"{out} {verb} shards of {old.get('source')}{difference}; {ALTERNATIVES}")


def check_no_foreign_shards(out):
    """Raise `UserError` if `out` holds shards without a progress file."""
    if not progress_files(out) and (list_shards(out, "train") or list_shards(out, "val")):
        raise UserError(f"{out} already holds shards that were made elsewhere; {ALTERNATIVES}")


def shard_files(out):
    """Shards and their masks, `meta.json` and progress files; `meta.json` first."""
    meta = [path for path in [out / "meta.json"] if path.exists()]
    shards = list_shards(out, "train") + list_shards(out, "val")
    return meta + progress_files(out) + shards + [path for path in map(mask_path, shards) if path.exists()]


def delete_shards(out, keep=None):
    """Delete shards, `meta.json` and progress files except `keep`, and nothing else in the folder.

    `meta.json` is deleted first, so that the remaining files never look like a finished folder.
    """
    with writing(out):
        for path in shard_files(out):
            if path != keep:
                path.unlink(missing_ok=True)
