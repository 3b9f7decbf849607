"""What a user reads when a run fails: out of memory and lost ranks in one line each."""

import contextlib
import os
import sys

from system import runtime
from system.errors import NothingToDo, RankError, UserError


@contextlib.contextmanager
def explain_failures(cfg, rt):
    """Turn an out-of-memory error into a `RankError`, and end this rank at once where another rank is lost."""
    try:
        yield
    except (UserError, NothingToDo):
        rt.close()
        raise
    except RuntimeError as error:
        if runtime.is_out_of_memory(error):
            raise RankError(
                f"out of memory on {rt.device}: lower B (now {cfg.B}; total_batch_size stays, in more micro-steps),"
                " lower T, or set --activation_checkpointing"
            ) from error
        if rt.world_size > 1 and runtime.is_lost_rank(error):
            reason = str(error).split(". ")[0]
            print(f"error: rank {rt.rank} lost another rank ({reason}); continue with --resume", file=sys.stderr)
            os._exit(1)  # skip the teardown: it would block on the dead rank
        raise
