"""Damage model files of every format, many times: `python tests/torture_formats.py --flips 2000`.

Prints `N passed, N failed`. A damaged file passes if reading it gives a model or one line, within 10 seconds, and if
this process never holds more than 2 GB.
"""

import dataclasses
import random
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

from hostile import flip, make_targets, peak_bytes, refused
from tqdm import tqdm

from configurator import configure
from system.errors import command

SECONDS, MEMORY = 10, 2 << 30


@dataclasses.dataclass(frozen=True)
class Settings:
    """Damage model files."""

    flips: int = 2000
    """number of damaged files"""
    seed: int = 0
    """seed of the random places"""


def passes(target, damaged):
    """Whether reading `target` with the content `damaged` passes; prints why not."""
    began = time.monotonic()
    target.path.write_bytes(damaged)
    try:
        refused(target)
    except Exception:
        traceback.print_exc()
        return False
    seconds, memory = time.monotonic() - began, peak_bytes()
    if seconds > SECONDS or memory > MEMORY:
        print(f"{target.path.name}: {seconds:.1f} s, {memory / 1e9:.2f} GB", file=sys.stderr)
        return False
    return True


@command
def main(argv=None):
    settings = configure(Settings, argv)
    generator, passed = random.Random(settings.seed), 0
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        targets = list(make_targets(Path(folder)).values())
        contents = [target.path.read_bytes() for target in targets]
        for number in tqdm(range(settings.flips)):
            target, content = targets[number % len(targets)], contents[number % len(targets)]
            damaged = flip(content, generator) if number % 4 else content[: generator.randrange(len(content))]
            passed += passes(target, damaged)
            target.path.write_bytes(content)
    failed = settings.flips - passed
    print(f"{passed} passed, {failed} failed; {peak_bytes() / 1e9:.2f} GB at most")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
