"""StopRequest turns signals into a flag."""

import signal

import pytest

from system.signals import StopRequest


def test_stop_request_sets_a_flag_and_restores_handlers():
    before = signal.getsignal(signal.SIGTERM)
    messages = []
    with StopRequest(messages.append) as stop:
        assert not stop.requested
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
    assert messages == ["SIGTERM: finishing this step, then saving"]


def test_stop_request_ignores_the_ctrl_c_that_torchrun_forwards(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with StopRequest(lambda message: None) as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        stop.last_interrupt -= 10  # seconds: the next one is not a copy
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
