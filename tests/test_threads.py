"""Turns of threads, and callbacks that nobody waits for."""

from __future__ import annotations

import os
import signal
import sys
import threading

import numpy as np
import pytest

from trtseg.api import Segmenter
from trtseg.errors import ArgumentError
from trtseg.threads import Teller, Turns


def test_turns_are_fair():
    turns, order, started = Turns("turns"), [], threading.Barrier(4)

    def work(name):
        started.wait()
        for _ in range(20):
            with turns:
                order.append(name)
                threading.Event().wait(0.001)  # so that the others ask meanwhile

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    started.wait()
    for thread in threads:
        thread.join(10)
    middle = order[10:40]
    assert all(len(set(middle[i : i + 3])) == 3 for i in range(len(middle) - 2)), order


def test_a_call_of_a_signal_handler_is_made_or_refused_at_any_moment():
    """Python looks for signals where a function begins, and after the call of one in C; another thread has the lock."""
    places = {Turns.check.__code__, Turns.is_mine.fget.__code__, Turns.release.__code__}
    places |= {Turns.__enter__.__code__, Turns.__exit__.__code__}
    turns, said = Turns("turns"), []

    def hold(has_it):
        with turns:
            has_it.set()
            threading.Event().wait(0.02)

    def call(number):
        left = number

        def interrupt(frame, event, _):
            nonlocal left
            if frame.f_code in places and event in ("call", "c_call", "c_return"):
                left -= 1
                if left < 0:
                    sys.setprofile(None)
                    try:
                        with turns:
                            said.append("made")
                    except ArgumentError as error:
                        said.append(str(error)[:42])

        sys.setprofile(interrupt)
        with turns:
            pass
        sys.setprofile(None)

    for number in range(1000):
        has_it = threading.Event()
        threads = [threading.Thread(target=hold, args=(has_it,), daemon=True)]
        threads[0].start()
        assert has_it.wait(10)
        threads += [threading.Thread(target=call, args=(number,), daemon=True)]
        threads[1].start()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive(), f"moment {number}: {said[-1:]}"
        if len(said) == number:
            break
    assert set(said) == {"made", "turns: got a call from within another call"}
    assert 10 < len(said) < 999


def test_a_process_that_was_forked_during_a_call_waits_for_nobody():
    turns, inside, end = Turns("turns"), threading.Event(), threading.Event()

    def work():
        with turns:
            inside.set()
            end.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(60)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that waits
        try:
            turns.__enter__()
        except ArgumentError as error:
            os._exit(0 if "turns: got a call in a process that was forked" in str(error) else 2)
        os._exit(1)
    end.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    child = os.fork()
    if child == 0:
        with turns:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_waits_already_is_told_once():
    go, told = threading.Event(), []

    def function(thing):
        assert go.wait(10)
        told.append(thing)

    teller = Teller("test", function)
    for thing in (1, 2, 3, 2, 2):
        teller.tell(thing)
    go.set()
    teller.end()
    teller.join()
    assert told == [1, 2, 3]


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_failures_after_the_end_are_logged(kind, caplog):
    go = threading.Event()

    def function(thing):
        assert go.wait(10)
        raise kind(thing)

    teller = Teller("test", function)
    for thing in (1, 2):
        teller.tell(thing)
    teller.end()
    go.set()
    teller.join()
    assert str(teller.failure) == "1"
    assert [record.getMessage() for record in caplog.records] == [
        f"test failed 2 times, first with {kind.__name__}(1)"
    ]


def test_a_teller_without_a_thread_says_so_and_goes_on_once_there_is_one(monkeypatch):
    def failing(_):
        raise RuntimeError("can't start new thread")

    told = []
    teller = Teller("test", told.append)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", failing)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            teller.tell(1)
        teller.join()  # waits for nobody
    teller.tell(2)
    teller.end()
    teller.join()
    assert told == [1, 2]


def test_a_teller_that_pauses_logs_its_failures_and_goes_on(monkeypatch, caplog):
    monkeypatch.setattr("trtseg.threads.IDLE_S", 0.01)
    before, told = threading.active_count(), []

    def function(thing):
        told.append(thing)
        raise ValueError(thing)

    teller = Teller("test", function)
    for thing in (1, 2):
        teller.tell(thing)
        while threading.active_count() > before:
            threading.Event().wait(0.01)
    teller.end()
    teller.join()
    assert told == [1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "test failed 1 times, first with ValueError(1)",
        "test failed 2 times, first with ValueError(1)",
    ]


def test_a_segmenter_goes_on_after_an_interrupt_at_any_moment(segmenter):
    """Python looks for signals where a function begins, and after the call of one in C."""
    hu = np.full((1, 64, 64), -1000, np.int16)
    places = {Segmenter.label.__code__, Segmenter._opened.__wrapped__.__code__}
    places |= {method.__code__ for method in vars(Turns).values() if hasattr(method, "__code__")}
    left, interrupted = 0, 0

    def interrupt(frame, event, _):
        nonlocal left
        if frame.f_code in places and event in ("call", "c_return"):
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

    for number in range(1000):
        left = number
        sys.setprofile(interrupt)
        try:
            segmenter.label(hu, spacing=(6.0, 6.0))
            break
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            sys.setprofile(None)
        assert not segmenter.label(hu, spacing=(6.0, 6.0)).any()
    assert 10 < interrupted < 999


def test_a_teller_is_waited_for_in_the_middle_of_its_end():
    """As a signal handler does that closes a stream."""
    told = []
    teller = Teller("teller", told.append)
    teller.tell(1)

    def end():
        with teller._changed:  # where a handler may come
            teller.end()
            teller.join()

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert told == [1]
