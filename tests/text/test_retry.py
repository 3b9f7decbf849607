import errno
import itertools
import pickle
import socket
import time

import pytest

from system.errors import NetworkError, UserError
from text import retry
from text.retry import Retry, describe_network_error


class Refusal(Exception):
    """An error like those of HTTP libraries, with the response that caused it."""

    def __init__(self, status, **headers):
        super().__init__()
        self.response = type("Response", (), {"status_code": status, "headers": headers, "url": "http://hub/file"})


@pytest.fixture
def pauses(monkeypatch):
    """The pauses made, in seconds, which do not take any time."""
    seconds = []
    monkeypatch.setattr(retry, "count_down", lambda pause, reason: seconds.append(pause))
    return seconds


def failing(*errors):
    """A function that raises each error once, then returns "done"."""
    left = list(errors)

    def call():
        if left:
            raise left.pop(0)
        return "done"

    return call


def test_retry_doubles_the_pause_and_starts_again_after_a_success(pauses):
    attempts = Retry(600, "--fraction 0.001")
    assert attempts.call(failing(*[ConnectionError()] * 4)) == "done"
    assert attempts.call(failing(TimeoutError())) == "done"
    assert pauses == [1, 2, 4, 8, 1]


def test_retry_waits_as_long_as_the_server_asks(pauses):
    assert Retry(600, "").call(failing(Refusal(429, **{"Retry-After": "30"}), NetworkError("busy", 7))) == "done"
    assert pauses == [30, 7]


def test_retry_gives_up_at_its_limit_and_names_three_ways_out(pauses):
    with pytest.raises(UserError, match=r"gave up after 10 s.*HF_ENDPOINT.*HF_HUB_OFFLINE.*--fraction 0\.001"):
        Retry(10, "--fraction 0.001").call(failing(*[ConnectionError()] * 9))
    assert pauses == pytest.approx([1, 2, 4, 3], abs=0.1)


def test_retry_counts_the_time_of_failing_attempts(pauses, monkeypatch):
    def fail_slowly():
        time.sleep(0.3)
        raise ConnectionError

    with pytest.raises(UserError, match="gave up after 1 s"):
        Retry(1, "").call(fail_slowly)
    assert pauses == pytest.approx([0.7], abs=0.1)


def test_retry_gives_up_an_attempt_that_does_not_end(pauses, monkeypatch):
    monkeypatch.setattr(retry, "ATTEMPT_S", 0.3)
    monkeypatch.setattr(retry, "STALL_S", 0.3)
    received = itertools.count()
    assert Retry(0.2, "").call(lambda: time.sleep(0.9), received=lambda: next(received)) is None
    with pytest.raises(UserError, match="does not answer; gave up after 0 s"):
        Retry(0.2, "").call(time.sleep, 30)


def test_retry_gives_up_at_once_where_a_name_does_not_resolve(pauses):
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    with pytest.raises(UserError, match=r"does not resolve.*HF_ENDPOINT.*HF_HUB_OFFLINE.*--fraction 0\.001"):
        Retry(600, "--fraction 0.001").call(failing(unknown))
    assert pauses == []
    attempts = Retry(600, "")
    attempts.call(failing())
    assert attempts.call(failing(unknown)) == "done", "a network that worked before may come back"
    assert pauses == [1]


@pytest.mark.parametrize("error", [ValueError("a bug"), UserError("a mistake")])
def test_retry_raises_other_errors_at_once(pauses, error):
    with pytest.raises(type(error), match=str(error)):
        Retry(600, "").call(failing(error))
    assert pauses == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Refusal(404), "http://hub/file: the hub answers 404"),
        (Refusal(401), "set HF_TOKEN of an account that has access"),
        (OSError(errno.ENOSPC, "full"), "no space left for downloads"),
    ],
)
def test_describe_network_error_reports_what_will_not_pass(error, message):
    with pytest.raises(UserError, match=message):
        describe_network_error(error)


def test_describe_network_error_looks_at_the_causes():
    error = RuntimeError("of a library")
    error.__cause__ = Refusal(503)
    assert describe_network_error(error) == "the hub answers HTTP 503"


def test_network_error_survives_pickling():
    error = pickle.loads(pickle.dumps(NetworkError("busy", 7.0)))
    assert (str(error), error.retry_after) == ("busy", 7.0)
