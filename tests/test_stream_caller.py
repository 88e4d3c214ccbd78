"""What a stream owes the program around it: memory back, copies of what it got, errors that name the lack."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from functools import partial

import numpy as np
import pytest
from interrupts import interrupt

from trtseg import stream as stream_module
from trtseg.errors import ArgumentError, OutOfMemoryError
from trtseg.phantom import abdomen
from trtseg.stream import THREAD
from trtseg.threads import Ahead

SPACING = (5.0, 4.0, 4.0)
SHAPE = (64, 80)


@pytest.fixture(scope="module")
def hu():
    return abdomen(shape=(20, *SHAPE), spacing=SPACING).ct


def push_all(stream, hu):
    for z, plane in enumerate(hu):
        stream.push(plane, z * SPACING[0])


def test_a_stream_that_has_ended_gives_its_memory_back_at_once(segmenter, hu):
    """Not when Python's collector comes: that may be many CTs later."""

    def ended():
        with segmenter.stream(SHAPE, spacing=SPACING[1:], on_labels=lambda *_: stream.counts) as stream:
            push_all(stream, hu)
            stream.finish()
        return weakref.ref(stream)

    ended()  # which imports modules, and an import that fails keeps its callers until the next collection
    gc.collect()
    gc.disable()
    try:
        assert ended()() is None
    finally:
        gc.enable()


def test_a_caller_may_use_the_array_of_a_position_again(segmenter, hu):
    place, told = np.zeros(3), []
    with segmenter.stream(
        SHAPE,
        spacing=SPACING[1:],
        directions=(1, 0, 0, 0, 1, 0),
        on_labels=lambda position, _: told.append(position[2]),
    ) as stream:
        for z in range(20):
            place[2] = z * SPACING[0]
            stream.push(hu[z], place)
        result = stream.finish()
    assert (result.canonical == segmenter.segment(hu, spacing=SPACING).canonical).all()
    assert told == [z * SPACING[0] for z in range(20)]


def test_a_stream_without_a_thread_is_refused_and_goes_on_once_there_is_one(monkeypatch, segmenter, hu):
    start, free = threading.Thread.start, []

    def failing(thread):
        if thread.name == THREAD and not free:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", failing)
    with segmenter.stream(SHAPE, spacing=SPACING[1:]) as stream:
        with pytest.raises(OutOfMemoryError, match=r"stream: no thread can be started; raise the limit"):
            stream.push(hu[0], 0.0)
        assert stream.counts == (0, 0)
    with segmenter.stream(SHAPE, spacing=SPACING[1:]) as stream:
        with pytest.raises(OutOfMemoryError):
            stream.push(hu[0], 0.0)
        free.append(1)
        push_all(stream, hu)
        assert (stream.finish().labels == segmenter.segment(hu, spacing=SPACING).labels).all()


def test_an_interrupt_amid_the_start_of_the_thread_leaves_one_thread_for_the_nets(monkeypatch, segmenter, hu):
    """Two would not know of the slices of each other, and `finish` would not wait for those of one."""
    before, go = working(), threading.Event()
    start, run = threading.Thread.start, segmenter._cascade.run
    monkeypatch.setattr(segmenter._cascade, "run", lambda *args, **more: (go.wait(10), run(*args, **more))[1])

    def interrupted(thread):
        start(thread)
        if thread.name == THREAD:
            monkeypatch.setattr(threading.Thread, "start", start)
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with segmenter.stream(SHAPE, spacing=SPACING[1:]) as stream:
        with pytest.raises(KeyboardInterrupt):
            stream.push(hu[0], 0.0)
        push_all(stream, hu)
        until = time.monotonic() + 10
        while working() - before != {stream._worker} and time.monotonic() < until:
            time.sleep(0.01)
        assert working() - before == {stream._worker}
        go.set()
        result = stream.finish()
    assert (result.labels == segmenter.segment(hu, spacing=SPACING).labels).all()


def working():
    return {thread for thread in threading.enumerate() if thread.name == THREAD}


def test_a_lack_of_memory_in_the_nets_is_told_as_such(monkeypatch, segmenter, hu):
    def failing(*_, **__):
        raise MemoryError

    monkeypatch.setattr(segmenter._cascade, "run", failing)
    with segmenter.stream(SHAPE, spacing=SPACING[1:]) as stream:
        stream.push(hu[0], 0.0)
        stream._worker.join(10)
        for call in (lambda: stream.push(hu[1], SPACING[0]), stream.finish):
            with pytest.raises(OutOfMemoryError, match=r"stream: needs more than the .* of memory"):
                call()


def test_a_stream_that_nobody_closes_gives_its_threads_and_memory_back(monkeypatch, segmenter, hu):
    monkeypatch.setattr("trtseg.threads.IDLE_S", 0.05)
    before = threading.active_count()

    def abandoned():
        told = threading.Event()
        stream = segmenter.stream(SHAPE, spacing=SPACING[1:], on_labels=lambda *_: told.set())
        stream.push(hu[0], 0.0)
        assert told.wait(10)
        return weakref.ref(stream)

    gone, until = abandoned(), time.monotonic() + 10
    while gone() is not None and time.monotonic() < until:
        time.sleep(0.01)
        gc.collect()
    assert gone() is None
    assert threading.active_count() == before


def test_a_stream_goes_on_after_a_pause(monkeypatch, segmenter, hu):
    monkeypatch.setattr("trtseg.threads.IDLE_S", 0.01)
    before, told = threading.active_count(), []
    with segmenter.stream(
        SHAPE, spacing=SPACING[1:], on_labels=lambda position, _: told.append(position)
    ) as stream:
        push_all(stream, hu[:10])
        while threading.active_count() > before:
            time.sleep(0.01)
        for z in range(10, 20):
            stream.push(hu[z], z * SPACING[0])
            time.sleep(0.01)
        assert (stream.finish().labels == segmenter.segment(hu, spacing=SPACING).labels).all()
    assert told == [z * SPACING[0] for z in range(20)]


def done_in_time(call):
    """What a call returns or raises, made by a thread of its own; it waits for nobody for ever."""
    made = Ahead(call)
    made._thread.join(10)
    assert not made._thread.is_alive()
    return made.result()


def test_who_has_the_nets_may_close_a_stream_and_may_not_wait_for_it(segmenter, hu):
    """As a progress function, a signal handler or the collector does, in the middle of a call of `segment`."""
    said = []

    def progress(*_):
        if not said:
            stream = segmenter.stream(SHAPE, spacing=SPACING[1:], queue=1)
            stream.push(hu[0], 0.0)
            while len(stream._waiting):
                time.sleep(0.001)  # until it waits for its turn
            stream.push(hu[1], SPACING[0])
            for call in (lambda: stream.push(hu[2], 2 * SPACING[0]), stream.finish):
                with pytest.raises(
                    ArgumentError, match="Segmenter: got a call from within another call"
                ) as got:
                    call()
                said.append(got)
            stream.close()
            with pytest.raises(ArgumentError, match="stream: got a call after its end"):
                stream.push(hu[3], 3 * SPACING[0])

    before = threading.active_count()
    result = done_in_time(lambda: segmenter.segment(hu, spacing=SPACING, progress=progress))
    assert len(said) == 2
    assert (result.labels == segmenter.segment(hu, spacing=SPACING).labels).all()
    until = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_signal_handler_may_close_a_stream_in_the_middle_of_its_push(monkeypatch, segmenter, hu):
    stream = segmenter.stream(SHAPE, spacing=SPACING[1:])
    find = stream._find_fit

    def interrupted():
        stream.close()  # in the thread that pushes, as a handler would
        return find()

    def push():
        push_all(stream, hu[:3])
        monkeypatch.setattr(stream, "_find_fit", interrupted)
        stream.push(hu[3], 3 * SPACING[0])
        with pytest.raises(ArgumentError, match="stream: got a call after its end"):
            stream.push(hu[4], 4 * SPACING[0])

    before = threading.active_count()
    done_in_time(push)
    assert threading.active_count() <= before + 1  # a worker that finds nothing to do


@pytest.mark.parametrize("call", ["push", "finish"])
def test_a_signal_handler_may_close_a_stream_just_before_a_wait(monkeypatch, segmenter, hu, call):
    """The thread that will wait has seen that it must, and the last word of the worker comes before it does."""
    go, run = threading.Event(), segmenter._cascade.run
    monkeypatch.setattr(segmenter._cascade, "run", lambda *args, **more: (go.wait(10), run(*args, **more))[1])
    stream = segmenter.stream(SHAPE, spacing=SPACING[1:], queue=1)
    wait = stream._changed.wait

    def interrupted(timeout=None):
        monkeypatch.setattr(stream._changed, "wait", wait)
        go.set()
        stream.close()  # in the thread that waits, as a handler would
        return wait(timeout)

    stream.push(hu[0], 0.0)
    stream.push(hu[1], SPACING[0])
    monkeypatch.setattr(stream._changed, "wait", interrupted)
    made = stream.finish if call == "finish" else partial(stream.push, hu[2], 2 * SPACING[0])
    with pytest.raises(ArgumentError, match="stream: got a call after its end"):
        done_in_time(made)


def test_other_threads_read_a_stream_after_an_interrupt_of_its_push_at_any_moment(segmenter, hu):
    for number in range(1000):
        with segmenter.stream(SHAPE, spacing=SPACING[1:]) as stream:
            stream.push(hu[0], 0.0)
            push = partial(stream.push, hu[1], SPACING[0])
            if interrupt(push, number, stream_module, threading) is None:
                break
            assert done_in_time(lambda: stream.counts[0]) in (1, 2)
    assert 10 < number < 999


def test_a_stream_is_of_the_process_that_opened_it(segmenter, hu):
    with segmenter.stream(SHAPE, spacing=SPACING[1:]) as stream:
        push_all(stream, hu[:10])
        while stream.counts[1] < 10:
            time.sleep(0.01)
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends a child that waits
            said = 0
            for call in (lambda: stream.push(hu[10], 10 * SPACING[0]), stream.finish):
                try:
                    call()
                except ArgumentError as error:
                    said += "stream: got a call in a process that was forked after" in str(error)
            stream.close()
            os._exit(said)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
        for z in range(10, 20):
            stream.push(hu[z], z * SPACING[0])
        assert (stream.finish().labels == segmenter.segment(hu, spacing=SPACING).labels).all()


def test_no_call_in_a_forked_process_waits_for_a_lock_that_another_thread_had(segmenter):
    has_them, go = threading.Event(), threading.Event()

    def hold():
        with stream._lock, stream._teller._lock:  # as amid a `push`, and amid the report of a slice
            has_them.set()
            go.wait(60)

    with segmenter.stream(SHAPE, spacing=SPACING[1:], on_labels=print) as stream:
        thread = threading.Thread(target=hold)
        thread.start()
        assert has_them.wait(10)
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends a child that waits
            said = 0
            for call in (
                lambda: stream.counts,
                lambda: stream.liver_ml,
                lambda: stream.tumour_ml,
                lambda: stream.labels_at(0.0),
            ):
                try:
                    call()
                except ArgumentError as error:
                    said += "stream: got a call in a process that was forked after" in str(error)
            stream.close()
            stream._at_exit()
            os._exit(said)
        go.set()
        thread.join()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4


def test_a_program_that_ends_waits_for_the_slices_on_which_the_nets_are(model):
    """Python before 3.14 unwinds a thread that is in the extension then, and OpenVINO's aborts the process."""
    program = f"""
import os, threading, time
import numpy as np
import trtseg

segmenter = trtseg.Segmenter({str(model)!r}, device="cpu", threads=1)
run, has_begun = segmenter._cascade.run, threading.Event()

def slowly(*arguments, **options):
    has_begun.set()
    time.sleep(0.5)
    made = run(*arguments, **options)
    os.write(1, b"labelled")
    return made

segmenter._cascade.run = slowly
segmenter._at_once = 1
stream = segmenter.stream((64, 80), spacing=(4.0, 4.0))
for z in range(20):
    stream.push(np.full((64, 80), -1000, np.int16), 5.0 * z)
has_begun.wait()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"labelled", b"")
