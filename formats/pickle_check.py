"""Check a pickle before torch loads it: only dense tensors and plain values, in a size that a model needs.

`torch.load(weights_only=True)` runs no code from a file, but its own list of names is longer than what a model needs:
`bytearray` and `_codecs.encode` fill the memory from a few bytes, and the functions for sparse, quantized, nested and
meta tensors make tensors that hold no plain numbers. A tuple of tuples of tuples … as the key of a dict takes Python
exponential time to hash, or ends the process. So the pickle's operations are read first, without executing any.
"""

import pickletools
import re

from system.boundary import printable
from system.errors import UserError

NAMES = re.compile(  # what a pickle may import, as "module name"
    r"collections (OrderedDict|Counter)|torch (Size|device|\w+Storage|u?int\d+|b?float\d+\w*|bool)"
    r"|torch\._utils (_rebuild_tensor(_v2|_v3)?|_rebuild_parameter)|torch\.nn\.parameter Parameter"
    r"|builtins set|__builtin__ set|__main__ GPTConfig"
)
MAX_OPERATIONS = 500_000  # a checkpoint of GPT-2 1558M with its optimizer has about 80,000
MAX_TUPLE = 10_000  # values in a tuple, counted again wherever it occurs in another tuple
MARK = None  # on the stack


def check_pickle(pickle, path):
    """Raise `UserError` if a pickle (bytes, or a file that is read up to its end) is more than a model needs.

    Follows the unpickler's stack with a number for each value: how many values a tuple holds, 1 for anything else.
    """
    stack, memo = [], {}
    for count, (operation, argument, _) in enumerate(pickletools.genops(pickle)):
        name = operation.name
        if name == "GLOBAL" and not NAMES.fullmatch(argument):
            used = printable(argument.replace(" ", "."))
            raise UserError(f"{path} was refused: its pickle uses {used}, expected dense tensors and plain values")
        items = pop_operands(stack, operation)
        size = 1 + sum(items) if name.startswith("TUPLE") else 1
        if count > MAX_OPERATIONS or size > MAX_TUPLE:
            raise UserError(f"{path} was refused: its pickle is larger or deeper than that of a model")
        if name.endswith("BINPUT"):
            memo[argument] = stack[-1]
        elif name.endswith("BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(MARK)
        else:
            stack.extend(size for _ in operation.stack_after)


def pop_operands(stack, operation):
    """Remove the operands of an operation from the stack, with the mark if it uses one, and return them."""
    items, before = [], operation.stack_before
    if pickletools.markobject in before:
        while (item := stack.pop()) is not MARK:
            items.append(item)
        before = before[: before.index(pickletools.markobject)]
    return items + [stack.pop() for _ in before]
