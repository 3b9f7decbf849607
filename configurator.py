"""A dataclass, config files and the command line make one typed config.

    python train_gpt2.py config/quickstart.py config/mine.py --max_lr 1e-3 --resume

Defaults come first, then each config file in order, then the flags. A config file is plain Python, run in a
namespace of its own, so `B = 8; total_batch_size = 4 * B * 256` works; the names it leaves behind are the settings.
(nanoGPT runs such files by `exec` inside the script's globals: a misspelt name there is silently a new variable.)
`tyro` turns text into typed values and the dataclass into `--help`; what is ours is the order and the one-line errors.
"""

import contextlib
import dataclasses
import difflib
import io
import os
import runpy
import sys
import types
import typing

import tyro

from system.errors import UserError

BOOLEANS = {"true": "True", "1": "True", "yes": "True", "false": "False", "0": "False", "no": "False"}
BOOLEAN_KINDS = (bool, bool | None)  # None: decided later, from what is there
TYRO_MARKERS = (tyro.conf.FlagConversionOff,)


def configure(cls, argv=None, positional=None):
    """Build a `cls` (a dataclass with a default for each field) from config files and flags.

    Arguments without dashes are config files, or, where `positional` names a field, that field's values.
    A method `check()` of `cls` is called last, for what a type can't say. Raises `UserError`; `--help` exits.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    kinds = typing.get_type_hints(cls)
    wants_help = "-h" in argv or "--help" in argv
    words, flags = split_arguments([arg for arg in argv if arg not in ("-h", "--help")], kinds)
    config = cls()
    if positional is None:
        for path in words:
            for name, value in read_config_file(path).items():
                config = assign(config, kinds, name, str(value), f"{path}: {name}")
    elif words:
        config = dataclasses.replace(config, **{positional: parse_positional(positional, kinds[positional], words)})
    if wants_help:
        show_help(config, positional)
    for name, text in flags:
        config = assign(config, kinds, name, text, f"--{name}")
    if callable(getattr(config, "check", None)):
        config.check()
    return config


def split_arguments(argv, kinds):
    """Tell words from flags: `--key value`, `--key=value`, and for booleans also `--key` and `--no-key`."""
    words, flags, rest = [], [], list(argv)
    while rest:
        arg = rest.pop(0)
        if not arg.startswith("--"):
            words.append(arg)
            continue
        name, equals, text = arg[2:].partition("=")
        name = name.replace("-", "_")
        if name.startswith("no_") and kinds.get(name[3:]) in BOOLEAN_KINDS and not equals:
            name, text = name[3:], "False"
        elif not equals and kinds.get(name) in BOOLEAN_KINDS:
            text = rest.pop(0) if rest and rest[0].lower() in BOOLEANS else "True"
        elif not equals:
            require_known(name, kinds, f"--{name}")
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--{name} needs a value: {expected(kinds[name])}")
            text = rest.pop(0)
        flags.append((name, text))
    return words, flags


def read_config_file(path):
    """The settings that a config file assigns: its public names, less what it imports or defines as a helper."""
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such config file (flags start with --; the recipes are in config/)")
    try:
        names = runpy.run_path(path)
    except Exception as error:  # the file is the user's, whatever it raises
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    helpers = (types.ModuleType, types.FunctionType, type)
    return {k: v for k, v in names.items() if not k.startswith("_") and not isinstance(v, helpers)}


def assign(config, kinds, name, text, where):
    """A copy of `config` with one field set from text, through tyro; `where` names the source in an error."""
    require_known(name, kinds, where)
    if kinds[name] in BOOLEAN_KINDS:
        text = BOOLEANS.get(text.lower(), text)
    one = dataclasses.make_dataclass("One", [(name, kinds[name])])
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # tyro explains in a box of many lines; one is enough
            parsed = tyro.cli(one, args=[f"--{name}={text}"], use_underscores=True, config=TYRO_MARKERS)
    except SystemExit:
        raise UserError(f"{where} = {text!r}: expected {expected(kinds[name])}") from None
    return dataclasses.replace(config, **{name: getattr(parsed, name)})


def require_known(name, kinds, where):
    if name not in kinds:
        near = difflib.get_close_matches(name, kinds, n=1)
        hint = f"did you mean {near[0]}?" if near else "--help lists all"
        raise UserError(f"{where}: no such setting; {hint}")


def parse_positional(name, kind, words):
    if kind is str:
        if len(words) > 1:
            raise UserError(f"expected one {name.upper()}, got {len(words)}: {' '.join(words)}")
        return words[0]
    return tuple(words)


def expected(kind):
    """A type in words, for error messages."""
    words = {int: "an integer", float: "a number", bool: "True or False", str: "text", type(None): "None"}
    if typing.get_origin(kind) is typing.Literal:
        options = typing.get_args(kind)
        return "one of " * (len(options) > 1) + ", ".join(map(str, options))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(expected(part) for part in typing.get_args(kind))
    return words.get(kind, str(kind))


def show_help(config, positional):
    """Print every key with its default (as the config files given leave it) and its line of meaning; exit 0."""
    prog = f"python {os.path.basename(sys.argv[0])}" + ("" if positional else " [config/FILE.py ...]")
    tyro.cli(type(config), prog=prog, args=["--help"], default=config, use_underscores=True, config=TYRO_MARKERS)
