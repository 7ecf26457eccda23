"""Runs are asked to stop: by signals, twice or at once, and by the end of the process that waits for them."""

import os
import signal

import pytest

from engram.training.stopping import PARENT, StopRequest


@pytest.fixture
def stop():
    request = StopRequest()
    yield request
    request.restore()


@pytest.fixture(autouse=True)
def no_nohup():
    """These tests may run under nohup, which is inherited."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_a_request_and_the_second_one_stops_at_once(stop, name, capfd):
    assert not stop.requested
    os.kill(os.getpid(), name)
    assert stop.requested
    assert capfd.readouterr().err.count("stopping after this chunk") == 1
    if name == signal.SIGHUP:  # the shell and the system both tell of a terminal that was closed
        try:
            os.kill(os.getpid(), name)
            os.kill(os.getpid(), signal.SIGTERM)  # and whoever waits for this process passes it on
        except KeyboardInterrupt:
            pytest.fail("the chunk that runs is lost")
        name = signal.SIGTERM
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), name)


def test_signals_are_given_back_and_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopRequest()
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.requested
        stop.restore()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    stop = StopRequest()
    stop.restore()
    assert signal.getsignal(signal.SIGHUP) is before


def test_the_end_of_the_process_that_waits_is_a_request(monkeypatch):
    monkeypatch.setenv(PARENT, str(os.getppid()))
    stop = StopRequest()
    assert not stop.requested
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert stop.requested
    stop.restore()
    # Of another process, such as the one that started a launcher; and of one that ended before this one listened.
    for number, requested in ((os.getpid(), False), (4194304, True)):
        monkeypatch.setenv(PARENT, str(number))
        stop = StopRequest()
        assert stop.requested == requested
        stop.restore()
