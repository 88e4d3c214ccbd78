"""A signal ends the wait of a process of the node, whatever it interrupts."""

import os
import signal
import sys
import threading
import time

from trtseg.node.stopping import Stop


def test_a_wait_ends_at_a_signal_and_later_ones_do_at_once():
    before = signal.getsignal(signal.SIGUSR1)
    try:
        stop = Stop(signal.SIGUSR1)
        assert not stop.wait(0.01)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        start = time.monotonic()
        assert stop.wait(30)
        assert stop.wait(30)
        assert time.monotonic() - start < 10
        assert stop.is_set()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_inside_the_handler_of_another_one_blocks_nothing():
    before = signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGUSR2)
    seen = []

    def trace(frame, event, _):
        if frame.f_code is Stop._set.__code__ and not seen:
            seen.append(event)
            os.kill(os.getpid(), signal.SIGUSR2)
        return trace

    try:
        stop = Stop(signal.SIGUSR1, signal.SIGUSR2)
        sys.settrace(trace)
        os.kill(os.getpid(), signal.SIGUSR1)
        sys.settrace(None)
        assert seen
        assert stop.wait(0)
    finally:
        sys.settrace(None)
        signal.signal(signal.SIGUSR1, before[0])
        signal.signal(signal.SIGUSR2, before[1])
