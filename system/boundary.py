"""The boundary for foreign bytes: files and answers from the net that this program did not write, or that were damaged.

A parser of foreign bytes can raise anything, allocate what a header claims and wait on a pipe. Every one of them runs
inside `foreign`, which turns whatever it raises into one line; a broad `except` belongs here and nowhere else. What a
file declares (layers, rows, unpacked bytes) is compared with its real size before anything is allocated.
"""

import contextlib
import errno
import json
import os
import reprlib
import stat

from system.errors import NetworkError, UserError

MAX_JSON_BYTES = 64 << 20
MAX_NESTING = 100  # levels of lists and objects in JSON; Python's own limit would end in a RecursionError later
MAX_REASON = 200  # characters of a parser's message
OUR_OWN = (UserError, NetworkError, KeyboardInterrupt, SystemExit, GeneratorExit)  # they say nothing about the bytes
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextlib.contextmanager
def foreign(source, expected, advice="copy it again"):
    """Raise whatever the body raises as a one-line `UserError` that names `source`, a path or a URL.

        with foreign(path, "a safetensors file"):
            tensors = parse(path)

    `expected` is a noun with its article. A `UserError`, a `NetworkError` and Ctrl-C pass unchanged.
    """
    source = printable(source)
    try:
        yield
    except OUR_OWN:
        raise
    except MemoryError as error:
        raise UserError(f"{source} needs more memory than is available") from error
    except BaseException as error:  # the panics of Rust libraries are no `Exception`
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{source}: {error.strerror}; expected {expected}") from error
        raise UserError(f"{source} is damaged or not {expected} ({reason(error)}); {advice}") from error


@contextlib.contextmanager
def library_write(path):
    """Raise whatever a library raises while it writes `path`, on a full disk for example, as an `OSError`."""
    try:
        yield
    except (OSError, *OUR_OWN):
        raise
    except BaseException as error:
        raise OSError(errno.EIO, f"could not be written ({reason(error)})", str(path)) from error


def reason(error):
    """An exception in one printable line: its type and the first line of its message."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return printable(text[:MAX_REASON])


def show(value):
    """A foreign value for a message: its `repr` in one line, shortened however long or deep the value is."""
    return printable(reprlib.repr(value))


def printable(text):
    """`text`, or a path, without line ends, terminal codes and bytes that are no UTF-8: a `?` for each."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def require_regular_file(path, expected):
    """Raise `UserError` unless `path` is a regular file, or a link to one: reading a pipe or a device may never end."""
    with foreign(path, expected):
        mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise UserError(f"{printable(path)} is {kind_of(mode)}; expected {expected}")


def kind_of(mode):
    """What `st_mode` says a path is, with its article."""
    return KINDS.get(stat.S_IFMT(mode), "no regular file")


def read_json(path, max_bytes=MAX_JSON_BYTES, advice="copy it again"):
    """The JSON object in a file, a dict. Raises `UserError` for anything else, and for more than `max_bytes`."""
    require_regular_file(path, "a JSON file")
    with foreign(path, "a JSON file", advice), open(path, "rb") as f:
        data = f.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UserError(f"{path} has {os.path.getsize(path):,} bytes, expected a JSON file of at most {max_bytes:,}")
    return parse_json(data, path, advice)


def parse_json(data, source, advice="copy it again"):
    """The JSON object in `data`, UTF-8 bytes or text; a dict. Raises `UserError` that begins with `source`."""
    with foreign(source, "JSON", advice):
        value = json.loads(data)
    if not isinstance(value, dict):
        raise UserError(f"{source} holds {show(value)}, expected a JSON object; {advice}")
    check_nesting(value, source)
    return value


def check_nesting(value, source):
    """Raise `UserError` if lists and dicts are nested more than `MAX_NESTING` levels deep."""
    level = [value]
    for _ in range(MAX_NESTING + 1):
        lists = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list)))
        level = [child for children in lists for child in children]
        if not level:
            return
    raise UserError(f"{source} nests lists or objects more than {MAX_NESTING} deep")


def require_fields(record, source, /, **types):
    """Raise `UserError` unless the dict `record` has each field with a value of its type, or of one in a tuple.

    True and False are no `int` here.

    require_fields(meta, path, tokenizer=str, shards=list, limit=(int, type(None)))
    """
    for name, wanted in types.items():
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)  # noqa: PLW2901
        if name not in record:
            raise UserError(f"{source} has no {name!r}")
        value = record[name]
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            names = " or ".join(cls.__name__.replace("NoneType", "null") for cls in wanted)
            raise UserError(f"{source}: {name} = {show(value)}, expected {names}")


def check_declared_size(source, declared, actual):
    """Raise `UserError` if a file declares more bytes than it has: call it before anything is allocated for them."""
    if declared > actual:
        raise UserError(f"{source} is damaged: it declares {declared:,} bytes or more, but has only {actual:,}")
