"""Build a typed config from a dataclass, config files and the command line.

    python train_gpt2.py config/quickstart.py config/mine.py --max_lr 1e-3 --resume

Defaults come first, then each config file in order, then the flags; the last value of a setting wins. A config file is
plain Python, run in its own namespace, so `B = 8; total_batch_size = 4 * B * 256` works; the names it assigns are the
settings. (nanoGPT executes such files in the script's globals, where a misspelt name silently becomes a new variable.)
`tyro` converts the text of a flag to the type of its field and prints `--help`; the order, the ranges of numbers and
the one-line error messages are implemented here.
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
from dataclasses import dataclass

import tyro

from system.errors import UserError, first_line
from system.foreign_flags import foreign_hint

BOOLEANS = {"true": "True", "1": "True", "yes": "True", "false": "False", "0": "False", "no": "False"}
BOOLEAN_TYPES = (bool, bool | None)  # None: the program decides
TYRO_MARKERS = (tyro.conf.FlagConversionOff,)
LARGEST = 10**12  # of a number without a bound of its own: what is larger is a mistake
LONGEST = 200  # bits of an integer that is shown in a message; Python refuses to print very long ones


@dataclass(frozen=True)
class Range:
    """What a numeric field accepts, as in `eps: Annotated[float, Range(0, 1)]`: low ≤ value ≤ high; never NaN."""

    low: float
    high: float = LARGEST
    excluded: float | None = None  # a bound that is not accepted itself

    def accepts(self, value):
        return self.low <= value <= self.high and value != self.excluded

    def describe(self, value):
        """What was expected instead of `value`, in words."""
        if value >= self.high:
            return f"less than {self.high}" if self.excluded == self.high else f"at most {self.high}"
        return f"more than {self.low}" if self.excluded == self.low else f"at least {self.low}"


def configure(cls, argv=None, positional=None, recall=None):
    """Build an instance of `cls`, a dataclass with a default for every field, from config files and flags.

    Arguments without dashes are config files. If `positional` names a field, they are the values of that field instead.
    `recall(config)` may return earlier settings {name: value}, for what neither files nor flags set.
    A number outside the `Range` of its field is refused. If `cls` has a method `check()`, it is called on the result to
    reject values and combinations that types and ranges allow.
    Raises `UserError` for every mistake in `argv` or in a config file; `--help` prints the settings and exits.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    field_types = typing.get_type_hints(cls)
    wants_help = "-h" in argv or "--help" in argv
    words, flags = split_arguments([arg for arg in argv if arg not in ("-h", "--help")], field_types)
    settings = {}
    if positional is None:
        for path in words:
            settings |= read_config_file(path, field_types)
    elif words:
        settings[positional] = parse_positional(positional, field_types[positional], words)
    if wants_help:
        show_help(cls(**settings), positional)
    for name, text in flags:
        require_known(name, field_types, f"--{name}")
        refuse_foreign_flag(f"--{name}={text}", field_types)
        settings[name] = parse_text(text, field_types[name], f"--{name}")
    config = cls(**settings)
    if recall is not None:
        recalled = {name: check_type(value, field_types[name], name) for name, value in recall(config).items()}
        config = cls(**recalled | settings)
    check_ranges(config)
    if callable(getattr(config, "check", None)):
        config.check()
    return config


def split_arguments(argv, field_types):
    """Split `argv` into (words, flags): arguments without dashes, and (name, text) for each flag.

    A flag is `--key value` or `--key=value`; a boolean flag is also `--key` or `--no-key`.
    """
    words, flags, rest = [], [], list(argv)
    while rest:
        arg = rest.pop(0)
        if not arg.startswith("--"):
            refuse_foreign_flag(arg.partition("=")[0], field_types)
            words.append(arg)
            continue
        name, equals, text = arg[2:].partition("=")
        name = name.replace("-", "_")
        if name.startswith("no_") and field_types.get(name[3:]) in BOOLEAN_TYPES and not equals:
            name, text = name[3:], "False"
        elif not equals and field_types.get(name) in BOOLEAN_TYPES:
            text = rest.pop(0) if rest and rest[0].lower() in BOOLEANS else "True"
        elif not equals:
            require_known(name, field_types, f"--{name}")
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--{name} needs a value: {describe_type(field_types[name])}")
            text = rest.pop(0)
        flags.append((name, text))
    return words, flags


def read_config_file(path, field_types):
    """Run a config file and return the settings that it assigns, {name: value of the field's type}.

    Names that start with an underscore, modules, functions and classes are the file's own helpers, not settings.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such config file (flags start with --; the recipes are in config/)")
    if not path.endswith(".py"):  # much JSON and YAML is valid Python that assigns nothing
        raise UserError(f"{path}: expected a Python file, NAME.py, with lines such as max_lr = 1e-3")
    try:
        names = runpy.run_path(path)
    except (Exception, SystemExit) as error:  # the file is the user's code and can raise anything
        raise UserError(f"{path}: {first_line(error)}") from error
    settings = {}
    for name, value in names.items():
        if name.startswith("_") or isinstance(value, (types.ModuleType, types.FunctionType, type)):
            continue
        where = f"{path}: {name}"
        require_known(name, field_types, where)
        settings[name] = check_type(value, field_types[name], where)
    if not settings:
        raise UserError(f"{path} assigns no setting: expected lines such as max_lr = 1e-3")
    return settings


def check_type(value, field_type, where):
    """Return a Python value of a config file as `field_type`; `where` names its source in the error.

    `field_type` is bool, int, float, str, None, a `Literal`, or a union of these. An int is accepted for a float field
    and converted; a bool is no number, and text is not parsed.
    """
    for option in type_options(field_type):
        if typing.get_origin(option) is typing.Literal:
            if any(type(value) is type(choice) and value == choice for choice in typing.get_args(option)):
                return value
        elif option is type(None) or option is bool:
            if isinstance(value, option):
                return value
        elif isinstance(value, (int, float) if option is float else option) and not isinstance(value, bool):
            return option(value)  # of a subclass such as numpy.float64, the plain value
    raise UserError(f"{where} = {show(value)}: expected {describe_type(field_type)}")


def check_ranges(config):
    """Raise `UserError` for a number outside the `Range` of its field, and for text that no file name can hold."""
    for name, hint in typing.get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        if isinstance(value, str) and "\0" in value:
            raise UserError(f"{name} = {value!r}: expected text without a null character")
        for allowed in getattr(hint, "__metadata__", ()):
            if isinstance(allowed, Range) and isinstance(value, (int, float)) and not allowed.accepts(value):
                others = [option for option in type_options(typing.get_args(hint)[0]) if option not in (int, float)]
                alternative = "".join(f", or {describe_type(option)}" for option in others)
                raise UserError(f"{name} = {show(value)}: expected {allowed.describe(value)}{alternative}")


def show(value):
    """A value as text for a message."""
    if isinstance(value, int) and value.bit_length() > LONGEST:
        return f"an integer of {value.bit_length():,} bits"
    return repr(value)


def parse_text(text, field_type, where):
    """Return the text of a flag as `field_type`, converted by tyro; `where` names the flag in the error."""
    word = BOOLEANS.get(text.lower(), text) if field_type in BOOLEAN_TYPES else text
    one_field = dataclasses.make_dataclass("OneField", [("value", field_type)])
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # tyro's own message fills a box of many lines
            return tyro.cli(one_field, args=[f"--value={word}"], config=TYRO_MARKERS).value
    except SystemExit:
        raise UserError(f"{where} = {text!r}: expected {describe_type(field_type)}") from None


def require_known(name, field_types, where):
    if name not in field_types:
        refuse_foreign_flag(f"--{name}", field_types, where)
        nearest = difflib.get_close_matches(name, field_types, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else "--help lists all settings"
        raise UserError(f"{where}: no such setting; {hint}")


def refuse_foreign_flag(flag, field_types, where=None):
    """Raise `UserError` if `flag` is another program's flag for a setting that has another name here."""
    hint = foreign_hint(flag, field_types)
    if hint is not None:
        raise UserError(f"{where or flag}: {hint}")


def parse_positional(name, field_type, words):
    """Return the arguments without dashes as the value of a field of type str or tuple[str, ...]."""
    if field_type is str:
        if len(words) > 1:
            raise UserError(f"expected one {name.upper()}, got {len(words)}: {' '.join(words)}")
        return words[0]
    return tuple(words)


def type_options(field_type):
    """Return the members of a union, or `(field_type,)`."""
    if typing.get_origin(field_type) in (typing.Union, types.UnionType):
        return typing.get_args(field_type)
    return (field_type,)


def describe_type(field_type):
    """Describe a type in words, for error messages."""
    words = {int: "an integer", float: "a number", bool: "True or False", str: "text", type(None): "None"}
    descriptions = []
    for option in type_options(field_type):
        if typing.get_origin(option) is typing.Literal:
            choices = typing.get_args(option)
            prefix = "one of " if len(choices) > 1 else ""
            descriptions.append(prefix + ", ".join(map(str, choices)))
        else:
            descriptions.append(words.get(option, str(option)))
    return " or ".join(descriptions)


def show_help(config, positional):
    """Print every setting with its default (as changed by the given config files) and its meaning, and exit with 0."""
    prog = f"python {os.path.basename(sys.argv[0])}"
    if positional is None:
        prog += " [config/FILE.py ...]"
    tyro.cli(type(config), prog=prog, args=["--help"], default=config, use_underscores=True, config=TYRO_MARKERS)
