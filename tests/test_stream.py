"""Slices in one by one: the result is that of the whole CT, whatever the order, the callback and the neighbours do."""

from __future__ import annotations

import dataclasses
import gc
import re
import threading
import weakref
from functools import partial

import numpy as np
import pytest
import tiny
from interrupts import interrupt

import trtseg
from trtseg import body
from trtseg import stream as stream_module
from trtseg.body import Placement, place_body
from trtseg.errors import ArgumentError, BusyError, DeviceError, InputError, OutOfMemoryError
from trtseg.phantom import abdomen

SPACING = (5.0, 4.0, 4.0)
SHAPE = (64, 80)


@pytest.fixture(scope="module")
def hu():
    return abdomen(shape=(20, *SHAPE), spacing=SPACING).ct


@pytest.fixture(scope="module")
def whole(segmenter, hu):
    return segmenter.segment(hu, spacing=SPACING)


def opened(segmenter, **options):
    return segmenter.stream(SHAPE, spacing=SPACING[1:], **options)


def position(z):
    return z * SPACING[0] - 30


def stuck(monkeypatch, segmenter):
    """Nets that begin with a slice when an event is set; a second event tells that they have got one."""
    go, began = threading.Event(), threading.Event()
    run = segmenter._cascade.run

    def held(*arguments, **options):
        began.set()
        assert go.wait(10)
        return run(*arguments, **options)

    monkeypatch.setattr(segmenter._cascade, "run", held)
    return go, began


def assert_same(result, expected):
    """Equal but for the time that it took, and that a stream says how it went."""
    assert (result.labels == expected.labels).all()
    assert (result.affine == expected.affine).all()
    assert result.lesions == expected.lesions
    made, wanted = result.report(), expected.report()
    made["provenance"] = {k: v for k, v in made["provenance"].items() if k != "relabelled_slices"}
    for report in (made, wanted):
        report.pop("timings_s")
    assert made == wanted


@pytest.mark.parametrize("order", ["feet first", "head first", "shuffled, with repeats"])
def test_any_order_gives_the_result_of_the_whole(segmenter, hu, whole, order):
    numbers = {
        "feet first": np.arange(20),
        "head first": np.arange(20)[::-1],
        "shuffled, with repeats": np.random.default_rng(0).permutation(np.arange(30) % 20),
    }[order]
    with opened(segmenter) as stream:
        for z in numbers:
            reused = hu[z].copy()
            stream.push(reused, position(z))
            reused[:] = 0  # the slice was copied
        result = stream.finish()
        assert stream.counts == (20, 20)
    assert_same(result, whole)
    assert result.tumour_ml > 0
    assert result.provenance["relabelled_slices"] == 0


def test_a_whole_ct_is_placed_with_the_threads_of_the_segmenter(tmp_path, hu, monkeypatch):
    asked = []
    with trtseg.Segmenter(tiny.cascade_model(tmp_path), threads=1) as segmenter, opened(segmenter) as stream:
        for z in range(20):
            stream.push(hu[z], position(z))
        real = stream_module.on_threads
        monkeypatch.setattr(stream_module, "on_threads", lambda n: asked.append(n) or real(n))
        stream.finish()
    assert asked == [1]


def test_a_slice_for_which_there_was_no_memory_can_be_pushed_again(tmp_path, hu, monkeypatch):
    scan = hu.copy()
    scan[:5, :12] = -1024  # so that later slices show more of the picture
    model = tiny.one_step_model(tmp_path, fit="body", pixel_mm=6.0)
    with trtseg.Segmenter(model) as segmenter, opened(segmenter) as stream:
        expected = segmenter.segment(scan, spacing=SPACING)
        real, calls = body._thick, []

        def fails(*arguments):
            calls.append(arguments)
            if len(calls) in (3, 8, 20):
                raise MemoryError
            return real(*arguments)

        monkeypatch.setattr(body, "_thick", fails)
        refused = 0
        for z in range(20):
            for _ in range(2):
                try:
                    stream.push(scan[z], position(z))
                    break
                except OutOfMemoryError:
                    refused += 1
        assert refused >= 2
        monkeypatch.setattr(body, "_thick", real)
        assert_same(stream.finish(), expected)


def test_a_one_step_model_knows_no_probabilities(tmp_path, hu):
    with trtseg.Segmenter(tiny.one_step_model(tmp_path)) as segmenter, opened(segmenter) as stream:
        expected = segmenter.segment(hu, spacing=SPACING)
        for z in range(20):
            stream.push(hu[z], position(z))
        assert_same(stream.finish(), expected)
        assert {lesion.probability for lesion in expected.lesions} == {None}


def test_warnings_are_those_of_the_whole(segmenter, hu):
    spoilt = hu[:12].copy()
    spoilt[5] = spoilt[4]
    expected = segmenter.segment(spoilt, spacing=SPACING)
    assert {warning.code for warning in expected.warnings} > {"slices-doubled"}
    with opened(segmenter) as stream:
        for z in range(12):
            stream.push(spoilt[z], position(z))
        assert_same(stream.finish(), expected)


def test_slices_as_dicom_has_them(segmenter, hu):
    """Rows back to front, columns as columns of the patient from the left, head to feet, oblique, with gantry tilt."""
    angle = 0.1
    directions = np.array([[-np.cos(angle), np.sin(angle), 0], [-np.sin(angle), -np.cos(angle), 0]])
    step, origin = np.array([0, 1.0, -5.0]), np.array([100.0, 80, 40])  # LPS
    stored = hu[::-1, ::-1, ::-1]
    affine = np.eye(4)
    # Index (column, row, slice), slices along row direction x column direction, which is to the head.
    affine[:3] = np.stack([directions[0] * 4.0, directions[1] * 4.0, -step, origin + 19 * step], 1)
    expected = segmenter.segment(stored[::-1].T, affine=np.diag([-1.0, -1, 1, 1]) @ affine)
    told = {}
    with segmenter.stream(
        SHAPE,
        spacing=(4.0, 4.0),
        directions=directions.ravel(),
        on_labels=lambda place, labels: told.update({place: labels}),
    ) as stream:
        for z in (3, 0, 1, 2, *range(4, 20)):
            stream.push(stored[z], tuple(origin + z * step))
        result = stream.finish()
    tilted = dataclasses.replace(result, warnings=result.warnings[1:])
    assert result.warnings[0].code == "geometry-tilt"
    assert_same(tilted, expected)
    nets = segmenter.label(hu, spacing=SPACING[1:])[::-1, ::-1, ::-1]
    for z in range(20):
        assert (told[tuple(origin + z * step)] == nets[z]).all()


def test_provisional_labels_and_volumes(segmenter, hu, whole):
    told = []
    with opened(segmenter, on_labels=lambda place, labels: told.append((place, labels))) as stream:
        assert stream.liver_ml == stream.tumour_ml == 0
        assert stream.labels_at(position(3)) is None
        for z in range(20):
            stream.push(hu[z], position(z))
        stream.finish()
        nets = segmenter.label(hu, spacing=SPACING[1:])
        assert (stream.labels_at(position(9)) == nets[9]).all()
        assert not stream.labels_at(position(9)).flags.writeable
        assert stream.liver_ml == pytest.approx(np.count_nonzero(nets) * 0.08)
        assert stream.tumour_ml == pytest.approx(np.count_nonzero(nets == 2) * 0.08)
        assert stream.failure is None
    assert [place for place, _ in told] == [position(z) for z in range(20)]
    assert all((labels == nets[z]).all() for z, (_, labels) in enumerate(told))


def test_a_failing_callback_loses_nothing(segmenter, hu, whole, caplog):
    seen = []

    def callback(place, labels):
        seen.append(place)
        raise ValueError(f"no screen for {place}")

    with opened(segmenter, on_labels=callback) as stream:
        for z in range(20):
            stream.push(hu[z], position(z))
        assert_same(stream.finish(), whole)
    assert len(seen) == 20
    assert str(stream.failure) == "no screen for -30.0"
    assert "on_labels failed 20 times, first with ValueError('no screen for -30.0')" in caplog.text


def test_a_slow_callback_holds_nothing_up(segmenter, hu, whole):
    go, seen = threading.Event(), []

    def callback(place, labels):
        assert go.wait(10)
        seen.append(place)

    with opened(segmenter, on_labels=callback, queue=1) as stream:
        for z in range(20):
            stream.push(hu[z], position(z))
        assert_same(stream.finish(), whole)  # while the callback waits
        assert not seen
        go.set()
    assert len(seen) == 20


def test_push_waits_while_the_nets_are_behind(monkeypatch, segmenter, hu, whole):
    go, began = stuck(monkeypatch, segmenter)
    with opened(segmenter, queue=2) as stream:
        stream.push(hu[0], position(0))
        assert began.wait(10)
        for z in (1, 2):
            stream.push(hu[z], position(z))
        with pytest.raises(
            BusyError, match=r"push: 2 slices have waited for the nets for 0\.01 s; push this"
        ):
            stream.push(hu[3], position(3), timeout=0.01)
        pusher = threading.Thread(target=stream.push, args=(hu[3], position(3)))
        pusher.start()
        pusher.join(0.05)
        assert pusher.is_alive()
        go.set()
        pusher.join(10)
        for z in range(4, 20):
            stream.push(hu[z], position(z))
        assert_same(stream.finish(), whole)


def test_slices_that_wait_are_labelled_together(monkeypatch, segmenter, hu, whole):
    """As many as the engine computes side by side, in the order in which they came, and then the rest."""
    go, began = stuck(monkeypatch, segmenter)
    run, together = segmenter._cascade.run, []
    recorded = lambda slices, *others, **options: together.append(slices) or run(slices, *others, **options)  # noqa: E731
    monkeypatch.setattr(segmenter._cascade, "run", recorded)
    monkeypatch.setattr(segmenter, "_at_once", 8)
    order = [7, *range(7), *range(8, 20)]
    with opened(segmenter) as stream:
        for z in order:
            stream.push(hu[z], position(z))
            assert began.wait(10)
        go.set()
        assert_same(stream.finish(), whole)
    assert [len(slices) for slices in together] == [1, 8, 8, 3]
    assert (np.concatenate(together) == hu[order]).all()


def test_two_streams_take_turns(segmenter, hu, whole):
    other = np.ascontiguousarray(hu[:, ::-1])
    with opened(segmenter) as first, opened(segmenter) as second:
        for z in range(20):
            first.push(hu[z], position(z))
            second.push(other[z], position(z))
        made = [second.finish(), first.finish()]
    assert_same(made[1], whole)
    assert_same(made[0], segmenter.segment(other, spacing=SPACING))


def placing_model(folder):
    """A model that places the patient's body on the grid of its nets."""
    nets = {}
    for role in ("liver", "tumour"):
        spec = tiny.spec(role, fit="body", pixel_mm=6.0)
        nets[role] = (
            spec,
            tiny.threshold_at(60 if role == "liver" else 85, spec, 40.0 if role == "liver" else -40.0),
        )
    return tiny.write_model(folder, nets)


def with_more_of_the_patient(hu):
    """Slices that are padded with air, but for the last five, where something else lies: placed otherwise."""
    padded = np.full((20, 160, 80), -1000, np.int16)
    padded[:, 10:74] = hu
    padded[15:, 90:154] = hu[15:]  # wherever that patient may be
    return padded


def test_an_interrupt_in_a_push_changes_no_result(tmp_path, hu):
    """Not even where the placement changes; Python looks for signals at such places."""
    padded = with_more_of_the_patient(hu)[11:17]
    with trtseg.Segmenter(placing_model(tmp_path / "model")) as segmenter:
        expected = segmenter.segment(padded, spacing=SPACING)
        for number in range(1000):
            with segmenter.stream((160, 80), spacing=SPACING[1:]) as stream:
                for z in range(4):
                    stream.push(padded[z], position(z))
                while stream.counts != (4, 4):
                    pass
                got = interrupt(partial(stream.push, padded[4], position(4)), number, trtseg.stream)
                for z in range(6):
                    stream.push(padded[z], position(z))
                assert (stream.finish().labels == expected.labels).all(), f"moment {number}"
            if got is None:
                break
    assert 10 < number < 999


def test_a_new_placement_labels_earlier_slices_again(tmp_path, hu):
    padded = with_more_of_the_patient(hu)
    told = []
    with trtseg.Segmenter(placing_model(tmp_path / "model")) as segmenter:
        expected = segmenter.segment(padded, spacing=SPACING)
        with segmenter.stream(
            (160, 80), spacing=SPACING[1:], on_labels=lambda place, _: told.append(place)
        ) as stream:
            for z in range(20):
                stream.push(padded[z], position(z))
                while stream.counts[0] != stream.counts[1]:
                    pass
            result = stream.finish()
    assert_same(result, expected)
    assert result.provenance["relabelled_slices"] >= 15
    assert set(told) == {position(z) for z in range(20)}
    assert len(told) > 20


def test_placement_is_that_of_the_slices_so_far():
    rng = np.random.default_rng(1)
    hu = np.full((9, 60, 70), -1000, np.int16)
    for z, plane in enumerate(hu):
        y, x = rng.integers(5, 40, 2)
        plane[y : y + 15 + z, x : x + 20] = 40
    hu[3] = -1000
    for of in (((60, 70), (4.0, 3.5), (32, 32), 4.0), ((60, 70), (1.5, 1.5), (64, 64), 1.5)):
        placement = Placement(*of)
        for n in range(9):
            placement.add(hu[n])
            assert placement.fit == place_body(hu[: n + 1], *of[1:]), n


def test_a_volume_given_at_the_end_counts(segmenter, hu, whole):
    volume = trtseg.load(hu, spacing=SPACING)
    with opened(segmenter) as stream:
        for z in range(0, 20, 2):
            stream.push(hu[z], position(z))
        stream.push(hu[0] + np.int16(1), position(99))  # is in no volume
        assert_same(stream.finish(volume), whole)  # the other half is labelled now
    with opened(segmenter) as stream:
        assert_same(stream.finish(volume), whole)
    told = []
    with segmenter.stream(
        (64, 64), spacing=(1.0, 1.0), on_labels=lambda *made: told.append(made[0])
    ) as stream:
        stream.push(hu[0, :, :64], 0.0)
        assert_same(stream.finish(volume), whole)
    assert stream.failure is None
    assert told in ([], [0.0])  # slices that nobody pushed are not told


def test_a_single_slice_needs_the_volume(segmenter, hu):
    one = hu[10:11]
    with opened(segmenter) as stream:
        stream.push(one[0], 0.0)
        result = stream.finish(trtseg.load(one, spacing=SPACING))
    assert_same(result, segmenter.segment(one, spacing=SPACING))
    assert result.liver_ml > 0


def test_what_makes_no_ct_is_refused(segmenter, hu):
    with opened(segmenter) as stream:
        stream.push(hu[0], 0.0)
        with pytest.raises(ArgumentError, match="volume: got a ndarray; expected a trtseg Volume"):
            stream.finish(hu)
        assert stream.finish(trtseg.load(hu, spacing=SPACING)).liver_ml > 0  # the stream went on
    with opened(segmenter) as stream:
        with pytest.raises(InputError, match="finish: got no slice"):
            stream.finish()
        assert stream.counts == (0, 0)
    for given in ({}, {"directions": (1, 0, 0, 0, 1, 0)}):
        with opened(segmenter, **given) as stream:
            stream.push(hu[10], (0.0, 0.0, 9.0) if given else 9.0)
            with pytest.raises(InputError, match=r"a single slice, .* how thick .*: finish\(trtseg\.load\("):
                stream.finish()
            one = stream.finish(trtseg.load(hu[10:11], spacing=SPACING))  # as the message says
            assert_same(one, segmenter.segment(hu[10:11], spacing=SPACING))
    with opened(segmenter) as stream:
        for z in (0, 1, 2, 3, 5, 6, 7):
            stream.push(hu[z], position(z))
        with pytest.raises(InputError, match=r"1 slice is missing, between -15 and -5 mm"):
            stream.finish()
        stream.push(hu[4], position(4))
        assert_same(stream.finish(), segmenter.segment(hu[:8], spacing=SPACING))
        with pytest.raises(ArgumentError, match="stream: got a call after its end; open another"):
            stream.finish()
    with opened(segmenter) as stream:
        stream.push(hu[0], 0.0)
        with pytest.raises(InputError, match=r"position: got 0\.001 with two different slices"):
            stream.push(hu[1], 0.001)
        for bad, place, message in (
            (np.ma.masked_less(hu[0], -900), 1.0, "hu: got a masked array, and pixels of it are masked"),
            (hu[0].astype(float), 1.0, r"hu: got float64 \(64, 80\); expected an int16 array \(64, 80\)"),
            (hu[0].T, 1.0, r"hu: got int16 \(80, 64\)"),
            ([0], 1.0, "hu: got list"),
            (hu[0], "here", "position: got 'here'; expected a number of mm"),
            (hu[0], (1.0, 2.0, 3.0), "position: got"),
            (hu[0], 10**400, "position: got 1000"),
            *(
                (hu[0], place, rf"position: got {re.escape(str(place))}")
                for place in (np.nan, -np.inf, 1e308)
            ),
        ):
            with pytest.raises(ArgumentError, match=message):
                stream.push(bad, place)
        for timeout in (-1, True, "soon", np.nan, np.inf):
            with pytest.raises(
                ArgumentError, match=f"timeout: got {timeout!r}; expected a number of seconds"
            ):
                stream.push(hu[1], 1.0, timeout=timeout)
        assert stream.counts[0] == 1
    with pytest.raises(ArgumentError, match="after its end"):
        stream.push(hu[2], 2.0)
    for options, message in (
        ({"directions": (0, 1, 0, 0, 0, -1)}, r"directions: got .*; expected axial slices"),
        ({"directions": (1, 0, 0, 1, 0, 0)}, r"directions: got .*; expected two unit vectors"),
        ({"directions": "LPS"}, "directions: got 'LPS'"),
        ({"queue": 0}, "queue: got 0"),
        ({"queue": True}, "queue: got True"),
        ({"queue": 2.0}, r"queue: got 2\.0"),
        ({"on_labels": 3}, "on_labels: got 3; expected a function"),
    ):
        with pytest.raises(ArgumentError, match=message):
            opened(segmenter, **options)
    with pytest.raises(ArgumentError, match="shape: got"):
        segmenter.stream((0, 3), spacing=(1.0, 1.0))


def test_leaving_early_gives_everything_back(segmenter, hu, whole):
    before = threading.active_count()
    with opened(segmenter, on_labels=print) as stream:
        for z in range(10):
            stream.push(hu[z], position(z))
    assert threading.active_count() == before
    gone = weakref.ref(stream)
    del stream
    gc.collect()
    assert gone() is None
    assert (segmenter.segment(hu, spacing=SPACING).labels == whole.labels).all()


def test_the_callback_may_close_its_stream(segmenter, hu):
    closed = threading.Event()

    def callback(*_):
        stream.close()
        closed.set()

    before = threading.active_count()
    with opened(segmenter, on_labels=callback) as stream:
        stream.push(hu[10], position(10))
        assert closed.wait(10)
        with pytest.raises(ArgumentError, match="after its end"):
            stream.push(hu[11], position(11))
    assert stream.failure is None
    assert threading.active_count() == before


def test_failing_nets_end_the_stream(monkeypatch, segmenter, hu, whole):
    def failing(*arguments, **options):
        raise DeviceError("the device has gone")

    with opened(segmenter) as stream:
        monkeypatch.setattr(segmenter._cascade, "run", failing)
        stream.push(hu[0], position(0))
        stream._worker.join(10)
        with pytest.raises(DeviceError, match="the device has gone"):
            stream.push(hu[1], position(1))
        with pytest.raises(DeviceError, match="the device has gone"):
            stream.finish()
    monkeypatch.undo()
    assert (segmenter.segment(hu, spacing=SPACING).labels == whole.labels).all()


def test_the_shipped_nets():
    hu = abdomen(shape=(6, 96, 120), spacing=(20.0, 3.0, 3.0)).ct
    with trtseg.Segmenter() as segmenter:
        expected = segmenter.segment(hu, spacing=(20.0, 3.0, 3.0))
        with segmenter.stream((96, 120), spacing=(3.0, 3.0)) as stream:
            for z in (4, 2, 0, 1, 5, 3):
                stream.push(hu[z], 20 * z)
            assert_same(stream.finish(), expected)
    assert expected.liver_ml > 0
