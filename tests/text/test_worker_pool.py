import os
from types import SimpleNamespace

import pytest
from worker_functions import abort_at_three, fail_once, kill_own_process, raise_error, square_slowly

from system.errors import UserError
from text.worker_pool import map_in_order


def run(function, pieces, workers, should_retry=None):
    items = (SimpleNamespace(piece=piece) for piece in pieces)
    return [(item.piece, result) for item, result in map_in_order(function, items, workers, should_retry)]


@pytest.mark.parametrize("workers", [0, 2])
def test_map_in_order_keeps_the_order_of_the_items(workers):
    assert run(square_slowly, range(20), workers) == [(i, i * i) for i in range(20)]


def test_map_in_order_sends_failed_pieces_again(tmp_path):
    paths = [str(tmp_path / name) for name in "abcdefgh"]
    errors = []

    def should_retry(error):
        errors.append(str(error))
        return True

    assert run(fail_once, paths, 1, should_retry) == list(zip(paths, "abcdefgh", strict=True))
    assert errors[0] == "a is busy"
    with pytest.raises(Exception, match="i is busy"):
        run(fail_once, [str(tmp_path / "i")], 1)


def test_map_in_order_reports_errors_of_workers():
    with pytest.raises(UserError, match="a mistake"):
        run(raise_error, [UserError("a mistake")], 1)
    with pytest.raises(RuntimeError, match=r"(?s)in raise_error.*ZeroDivisionError: a bug"):
        run(raise_error, [ZeroDivisionError("a bug")], 1)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_map_in_order_reports_a_killed_worker():
    with pytest.raises(
        UserError, match=r"a worker process was killed \(out of memory\?\) while reading 0; lower --num"
    ):
        run(kill_own_process, range(5), 1)


@pytest.mark.skipif(os.name != "posix", reason="SIGABRT is POSIX")
def test_map_in_order_names_the_piece_that_crashed_a_worker():
    with pytest.raises(UserError, match=r"crashed while reading 3 \(SIGABRT\): the file is probably damaged"):
        run(abort_at_three, range(8), 1)
