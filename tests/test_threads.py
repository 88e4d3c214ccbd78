"""Turns of threads, and callbacks that nobody waits for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
from interrupts import interrupt

import trtseg
from trtseg import api, threads
from trtseg.errors import ArgumentError
from trtseg.threads import Ahead, Teller, Turns


def test_turns_are_fair():
    turns, order, started = Turns("turns"), [], threading.Barrier(4)

    def work(name):
        def step():
            order.append(name)
            threading.Event().wait(0.001)  # so that the others ask meanwhile

        started.wait()
        for _ in range(20):
            turns.run(step)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in workers:
        thread.start()
    started.wait()
    for thread in workers:
        thread.join(10)
    middle = order[10:40]
    assert all(len(set(middle[i : i + 3])) == 3 for i in range(len(middle) - 2)), order


def test_a_call_of_a_signal_handler_is_made_or_refused_at_any_moment():
    """Python looks for signals where a function begins, and after the call of one in C; another thread has the lock."""
    places = {Turns.is_mine.fget.__code__, Turns.check.__code__, Turns.run.__code__}
    places |= {Turns._wait.__code__, Turns._leave.__code__}
    turns, said = Turns("turns"), []

    def hold(has_it):
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
                        turns.run(lambda: said.append("made"))
                    except ArgumentError as error:
                        said.append(str(error)[:42])

        sys.setprofile(interrupt)
        turns.run(lambda: None)
        sys.setprofile(None)

    for number in range(1000):
        has_it = threading.Event()
        pair = [threading.Thread(target=turns.run, args=(partial(hold, has_it),), daemon=True)]
        pair[0].start()
        assert has_it.wait(10)
        pair += [threading.Thread(target=call, args=(number,), daemon=True)]
        pair[1].start()
        for thread in pair:
            thread.join(10)
            assert not thread.is_alive(), f"moment {number}: {said[-1:]}"
        if len(said) == number:
            break
    assert set(said) == {"made", "turns: got a call from within another call"}
    assert 10 < len(said) < 999


def test_a_process_that_was_forked_during_a_call_waits_for_nobody():
    turns, inside, end = Turns("turns"), threading.Event(), threading.Event()

    def work():
        inside.set()
        end.wait(60)

    thread = threading.Thread(target=turns.run, args=(work,))
    thread.start()
    inside.wait(60)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that waits
        try:
            turns.run(lambda: None)
        except ArgumentError as error:
            os._exit(0 if "turns: got a call in a process that was forked" in str(error) else 2)
        os._exit(1)
    end.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    child = os.fork()
    if child == 0:
        turns.run(lambda: os._exit(0))
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


@pytest.mark.parametrize("method", ["label", "close"])
def test_other_threads_go_on_after_an_interrupt_at_any_moment(model, method):
    """Whoever is interrupted may keep the exception, as an interactive Python does, and the frames that it knows."""
    hu, kept = np.full((1, 64, 64), -1000, np.int16), []
    for number in range(1000):
        segmenter = trtseg.Segmenter(model, device="cpu")
        call = partial(segmenter.label, hu, spacing=(6.0, 6.0))
        kept.append(
            interrupt(segmenter.close if method == "close" else call, number, api, threads, contextlib)
        )
        if kept[-1] is None:
            break
        other = Ahead(call)
        other._thread.join(10)
        assert not other._thread.is_alive(), f"moment {number}"
        if segmenter._close.alive:
            assert not other.result().any()
        else:
            with pytest.raises(ArgumentError, match="after close"):
                other.result()
    assert 10 < number < 999


def test_a_teller_is_waited_for_in_the_middle_of_its_end():
    """As a signal handler does that closes a stream."""
    told = []
    teller = Teller("teller", told.append)
    teller.tell(1)

    def end():
        with teller._lock:  # where a handler may come
            teller.end()
            teller.join()

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert told == [1]


@pytest.mark.parametrize("waits", [False, True])
def test_a_call_near_the_recursion_limit_leaves_no_lock_taken(waits):
    """At each depth, once; a thread that waits is interrupted there."""
    turns, said, depth = Turns("turns"), [], 0

    def held():
        has_it.set()
        assert go.wait(10)

    def interrupt(frame, event, called):
        if event == "c_call" and getattr(called, "__qualname__", "") == "SimpleQueue.get":
            sys.setprofile(None)
            raise KeyboardInterrupt

    def call(left):
        if left:
            return call(left - 1)
        if waits:
            sys.setprofile(interrupt)
        return turns.run(lambda: "made")

    def work():
        try:
            said.append(call(depth))
        except (RecursionError, KeyboardInterrupt) as error:
            said.append(type(error).__name__)
        finally:
            sys.setprofile(None)

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(200)
    try:
        for depth in range(150, 200):
            has_it, go = threading.Event(), threading.Event()
            pair = [threading.Thread(target=turns.run, args=(held,), daemon=True)] if waits else []
            for thread in pair:
                thread.start()
                assert has_it.wait(10)
            pair.append(threading.Thread(target=work, daemon=True))
            pair[-1].start()
            pair[-1].join(10)
            go.set()
            other = Ahead(partial(turns.run, lambda: None))
            for thread in (*pair, other._thread):
                thread.join(10)
                assert not thread.is_alive(), f"depth {depth}: {said[-1:]}"
    finally:
        sys.setrecursionlimit(limit)
    assert set(said) == {"KeyboardInterrupt" if waits else "made", "RecursionError"}


def test_an_interrupt_of_a_wait_is_told_as_such_at_any_moment(monkeypatch):
    monkeypatch.setattr(threads, "LOOK_S", 0.01)

    def wait(lock, changed):
        with lock:
            threads.wait_for(changed, lambda: False, 0.03)

    for number in range(1000):
        lock = threading.RLock()
        changed = threading.Condition(lock)
        if interrupt(partial(wait, lock, changed), number, threads, threading) is None:
            break
        other = Ahead(partial(lock.acquire, timeout=10))
        assert other.result(), f"moment {number}"
    assert 10 < number < 999


def test_a_thread_whose_operation_raises_does_not_abort_the_end_of_the_process():
    """Python ends daemon threads where they take the GIL back, which no thread may while an exception unwinds it."""
    script = """
import threading, time, numpy as np
from trtseg import _core
def fail():
    hu = np.zeros((2, 64, 64), np.int16)
    while True:
        try:
            _core.frame(hu, np.zeros(5, np.int32))
        except ValueError:
            pass
for _ in range(4):
    threading.Thread(target=fail, daemon=True).start()
time.sleep(0.3)
"""
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
