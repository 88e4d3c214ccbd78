"""The gate for engines: sound ones pass, and each way in which engines are known to fail is told."""

from __future__ import annotations

import json
import sys
from collections import Counter

import numpy as np
import pytest
import tiny
from engine_models import key, sidecar

from trtseg import _core, models
from trtseg.engines.acceptance import CRITERIA, Verdict, calibration, judge
from trtseg.engines.agreement import DICE, FLIP_SHARE, LOGIT_BOUND, MIN_PIXELS
from trtseg.engines.nvidia import cache
from trtseg.engines.openvino import OpenVinoEngine
from trtseg.errors import ArgumentError, DeviceError, ModelError

DTYPE = {"fp16": np.float16, "fp32": np.float32}
ROLES = ("liver", "tumour", "one-step")


def level(hu: float, of) -> float:
    return (hu - of.window[0]) / (of.window[1] - of.window[0])


def one_step_model(folder, **changes):
    """Background up to 40 HU, tumour up to 85 HU, liver above."""
    spec = tiny.spec("one-step", **changes)
    low, high = level(40, spec), level(85, spec)
    slopes = np.array([0.0, 80.0, 40.0])
    bias = np.array([0.0, -40 * (low + high), -40 * low])
    net = tiny.convolution(slopes.reshape(3, 1, 1, 1), bias, spec)
    return tiny.write_model(folder, {"one-step": (spec, net)})


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """Role to the spec, the ONNX file, the slices and the reference's logits."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for path in (tiny.cascade_model(folder / "cascade"), one_step_model(folder / "one")):
        files = models.find(path)
        for role, (images, logits) in calibration(files).items():
            spec = next(s for s in files.spec.nets if s.role == role)
            found[role] = spec, files.read(role), images, logits
    return found


@pytest.fixture(params=ROLES)
def net(request, nets):
    return nets[request.param]


@pytest.fixture(params=[1, 4, 16])
def batch(request) -> int:
    return request.param


@pytest.fixture(params=[4, 16])
def several(request) -> int:
    return request.param


def verdict_on(run, net, batch: int, precision: str = "fp16") -> Verdict:
    spec, _, images, logits = net
    of = key(role=spec.role, batch=batch, precision=precision)
    return judge(run, logits, images, engine=of, spec=spec, gpu="a GPU", driver="1.2")


def numbers(net, rows: np.ndarray) -> list[int]:
    """Which calibration slice each row is."""
    known = {image.tobytes(): number for number, image in enumerate(net[2].astype(rows.dtype))}
    return [known[row.tobytes()] for row in rows]


def sound(net):
    """An engine that gives the reference's logits in its type."""
    return lambda rows: net[3][numbers(net, rows)].astype(rows.dtype)


def begins(verdict: Verdict, *starts: str) -> None:
    """The reasons are these and no others, by how they begin."""
    assert not verdict.accepted
    got = [next((s for s in starts if r.startswith(s)), r) for r in verdict.reasons]
    assert got == list(starts)


IDENTICAL = "identical slices in one batch gave different logits"
NEIGHBOURS = "the slot or the neighbours of a slice changed its logits"
AGAIN = "a second run of the same batch gave other logits"


class TestSoundEngines:
    def test_the_reference_itself_passes(self, net, batch):
        spec, onnx, images, logits = net
        engine = OpenVinoEngine(onnx, spec, "fp32")

        def run(rows):
            out = np.empty((batch, spec.channels, *spec.size), np.float32)
            engine.run(rows, out)
            return out

        verdict = verdict_on(run, net, batch, "fp32")
        assert verdict.accepted
        assert verdict.reasons == ()
        assert (verdict.slices, verdict.batch) == (len(images), batch)
        assert (verdict.max_difference, verdict.rms_difference) == (0, 0)
        assert (verdict.flipped, verdict.flipped_share, verdict.largest_flip_margin) == (0, 0, 0)
        if spec.role == "one-step":
            winner = logits.argmax(axis=1)
            sizes = {"liver": int((winner == 1).sum()), "tumour": int((winner == 2).sum())}
        else:
            sizes = {spec.role: int(((logits > 0) & ((images > 0) | (spec.role == "liver"))).sum())}
        assert verdict.compared_pixels == sizes
        assert min(sizes.values()) >= MIN_PIXELS
        assert verdict.dice == dict.fromkeys(sizes, 1.0)
        assert verdict.reference.startswith("openvino 20")
        assert verdict.reference.endswith(" fp32")
        assert verdict.at.endswith("+00:00")
        assert (verdict.gpu, verdict.driver, verdict.criteria) == ("a GPU", "1.2", CRITERIA)

    def test_logits_rounded_to_fp16_pass(self, net, batch):
        verdict = verdict_on(sound(net), net, batch)
        assert verdict.accepted
        assert 0 < verdict.rms_difference < verdict.max_difference < 0.05

    def test_every_slice_runs_in_every_slot_twice(self, net, batch):
        asked = []

        def run(rows):
            assert (rows.dtype, rows.shape) == (np.float16, (batch, 1, *tiny.SIZE))
            assert rows.flags.c_contiguous
            asked.append(tuple(numbers(net, rows)))
            return sound(net)(rows)

        verdict = verdict_on(run, net, batch)
        slices = len(net[2])
        assert verdict.runs == len(asked) == (2 if batch == 1 else 4) * slices
        half = len(asked) // 2
        assert asked[:half] == asked[half:], "the second run of a batch comes after all others"
        plan = asked[:half]
        alone = [b for b in plan if len(set(b)) == 1]
        mixed = [b for b in plan if len(set(b)) > 1]
        wanted = {(i, slot): 1 for i in range(slices) for slot in range(batch)}
        assert Counter((b[slot], slot) for b in alone for slot in range(batch)) == wanted
        if batch > 1:
            assert Counter((b[slot], slot) for b in mixed for slot in range(batch)) == wanted

    def test_what_an_engine_does_to_its_arrays_changes_nothing(self, net):
        """A runner may give the same buffer each time, and an engine may write to its input."""
        buffer = np.empty_like(net[3][:4], np.float16)

        def run(rows):
            buffer[:] = sound(net)(rows)
            rows[:] = 7
            return buffer

        assert verdict_on(run, net, 4).accepted


class TestInconsistentEngines:
    def test_different_answers_for_identical_rows(self, net):
        def run(rows):
            out = sound(net)(rows)
            for slot in range(1, 4):
                out[slot, 0, 5, 5] += np.float16(0.125 * slot)
            return out

        verdict = verdict_on(run, net, 4)
        begins(verdict, IDENTICAL, NEIGHBOURS)
        assert verdict.reasons[0] == f"{IDENTICAL}, in 8 of 8 batches (slots 1, 2, 3)"

    def test_one_bit_in_one_slot(self, net, several):
        def run(rows):
            out = sound(net)(rows)
            out[2, -1, -1, -1] = np.nextafter(out[2, -1, -1, -1], np.float16(99))
            return out

        verdict = verdict_on(run, net, several)
        begins(verdict, IDENTICAL, NEIGHBOURS)
        assert all("8 of 8 batches (slots 2)" in reason for reason in verdict.reasons)

    def test_the_sign_of_zero(self, net, several):
        """Equal numbers are not enough: the bits are to be the same."""

        def run(rows):
            out = sound(net)(rows)
            out[:, 0, 0, 0] = 0
            out[1, 0, 0, 0] = -0.0
            return out

        verdict = verdict_on(run, net, several)
        assert [r for r in verdict.reasons if r.startswith(IDENTICAL)]

    def test_one_bit_in_the_second_run(self, net, batch):
        seen = set()

        def run(rows):
            out = sound(net)(rows)
            if rows.tobytes() in seen:
                out[-1, 0, 3, 3] = np.nextafter(out[-1, 0, 3, 3], np.float16(99))
            seen.add(rows.tobytes())
            return out

        verdict = verdict_on(run, net, batch)
        begins(verdict, AGAIN)
        total = len(seen)
        assert verdict.reasons[0].endswith(f"in {total} of {total} batches (slots {batch - 1})")

    def test_one_bit_in_one_single_run(self, net, batch):
        runs = []

        def run(rows):
            out = sound(net)(rows)
            runs.append(1)
            if len(runs) == (16 if batch == 1 else 32):
                out[0, 0, 3, 3] = np.nextafter(out[0, 0, 3, 3], np.float16(99))
            return out

        begins(verdict_on(run, net, batch), AGAIN)

    @pytest.mark.parametrize("shift", ["neighbour", "half"])
    def test_the_answers_of_other_rows(self, net, several, shift):
        by = 1 if shift == "neighbour" else several // 2
        verdict = verdict_on(lambda rows: np.roll(sound(net)(rows), by, axis=0), net, several)
        assert verdict.reasons[0].startswith(f"{NEIGHBOURS}, in 8 of 8 batches")
        assert any(r.startswith("another label in") for r in verdict.reasons)

    def test_a_neighbour_that_leaks_in(self, net, several):
        """Wrong only next to another slice, and by one bit."""

        def run(rows):
            out = sound(net)(rows)
            if (rows != rows[0]).any():
                out[3, 0, 3, 3] = np.nextafter(out[3, 0, 3, 3], np.float16(99))
            return out

        verdict = verdict_on(run, net, several)
        begins(verdict, NEIGHBOURS)
        assert verdict.reasons[0].endswith("(slots 3)")

    def test_the_answer_of_the_run_before(self, net, batch):
        last = [np.zeros((batch, *net[3].shape[1:]), np.float16)]

        def run(rows):
            last.append(sound(net)(rows))
            return last[-2]

        reasons = verdict_on(run, net, batch).reasons
        assert any(r.startswith(AGAIN) for r in reasons)
        assert any(r.startswith("another label in") for r in reasons)


class TestWrongEngines:
    def test_black(self, net, batch):
        spec = net[0]
        classes = spec.classes[1:] or spec.classes
        shape = (batch, *net[3].shape[1:])
        verdict = verdict_on(lambda rows: np.zeros(shape, rows.dtype), net, batch)
        begins(
            verdict,
            "logits are off by",
            "another label in",
            "another label in",
            *(
                f"{name}: Dice 0.0000 with the reference's {verdict.compared_pixels[name]} pixels"
                for name in classes
            ),
        )
        assert verdict.largest_flip_margin > 3

    def test_all_nan(self, net, batch):
        shape = (batch, *net[3].shape[1:])
        verdict = verdict_on(lambda rows: np.full(shape, np.nan, rows.dtype), net, batch)
        start = f"NaN or infinity instead of {net[3].size} logits"
        assert verdict.reasons[0].startswith(start)
        assert any("Dice 0.0000" in reason for reason in verdict.reasons)
        json.dumps(verdict.to_json(), allow_nan=False)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_one_pixel_that_is_no_number(self, net, batch, value):
        def run(rows):
            out = sound(net)(rows)
            for slot, image in enumerate(numbers(net, rows)):
                if image == 3:
                    out[slot, 0, 0, 0] = value  # in a corner: air, whatever the net
            return out

        verdict = verdict_on(run, net, batch)
        start = "NaN or infinity instead of 1 logits that are finite in the reference"
        assert verdict.reasons[0].startswith(start)
        if batch == 1:
            assert verdict.reasons[0] == f"{start} (slots 0)"

    def test_nan_in_one_row_in_slot_3(self, net, several):
        def run(rows):
            out = sound(net)(rows)
            out[3, 0, 0, 0] = np.nan
            return out

        verdict = verdict_on(run, net, several)
        starts = [IDENTICAL, NEIGHBOURS, "NaN or infinity instead of 8 logits"]
        assert [
            any(r.startswith(s) and r.endswith("(slots 3)") for r in verdict.reasons) for s in starts
        ] == [True] * 3

    def test_a_bias_flips_labels_far_from_the_threshold(self, net, batch):
        """By three logits: more than the arithmetic of FP16 explains."""
        channel = net[3].shape[1] // 2

        def run(rows):
            out = sound(net)(rows)
            out[:, channel] += np.float16(3)
            return out

        reasons = verdict_on(run, net, batch).reasons
        starts = ["logits are off by", "another label in"]
        assert [any(r.startswith(s) for r in reasons) for s in starts] == [True, True]
        assert any("from the threshold" in r for r in reasons)


def made(role: str, reference: np.ndarray, images: np.ndarray | None = None):
    """A net of which only the reference's logits ``[k, c, H, W]`` and the slices are known."""
    spec = tiny.spec(role, size=reference.shape[2:])
    noise = np.random.default_rng(0).uniform(0.25, 1, (len(reference), 1, *spec.size))
    images = (noise if images is None else images).astype(np.float16).astype(np.float32)
    return spec, b"", images, reference.astype(np.float32)


def changed(net, pixels, value: float):
    """The reference's logits, but for one value in those of slice 0."""

    def run(rows):
        out = sound(net)(rows)
        for slot, image in enumerate(numbers(net, rows)):
            if image == 0:
                out[slot][pixels] = value
        return out

    return run


class TestBounds:
    """Each of them, just kept and just not."""

    @pytest.mark.parametrize("precision", ["fp16", "fp32"])
    @pytest.mark.parametrize("sign", [1, -1])
    @pytest.mark.parametrize("role", ROLES)
    def test_how_far_from_the_threshold_a_label_may_flip(self, role, precision, sign):
        bound = LOGIT_BOUND[precision]
        for factor, accepted in ((0.96, True), (1.04, False)):
            reference = np.full((2, 3 if role == "one-step" else 1, 64, 64), -0.5)
            reference[:, 0] = 0.5  # one-step: background, else the object
            reference[0, 0, 1, 1] = sign * factor * bound
            if role == "one-step":
                reference[0, 1, 1, 1] = 0  # the margin is to the second, not to the threshold
            net = made(role, reference)
            verdict = verdict_on(changed(net, (0, 1, 1), -sign * factor * bound), net, 4, precision)
            assert verdict.flipped == 1
            assert verdict.flipped_share == 1 / (2 * 64 * 64)
            assert verdict.largest_flip_margin == pytest.approx(factor * bound, rel=1e-3)
            assert verdict.accepted == accepted
            if not accepted:
                begins(verdict, f"another label in 1 pixels where the reference is {bound:g} or more")

    @pytest.mark.parametrize(
        ("precision", "margin", "accepted"),
        [("fp16", 0.063, True), ("fp16", 0.3, False), ("fp32", 0.0005, True), ("fp32", 0.008, False)],
    )
    def test_what_arithmetic_explains(self, precision, margin, accepted):
        """FP16 with FP16 sums is off by 0.063; FP32 by far less, but TF32 flips labels at 0.008."""
        reference = np.full((2, 1, 64, 64), -1.0)
        reference[0, 0, 1, 1] = margin
        net = made("liver", reference)
        assert verdict_on(changed(net, (0, 1, 1), -margin), net, 4, precision).accepted == accepted

    def test_the_threshold_is_the_nets_own(self):
        reference = np.full((1, 1, 64, 64), 5.0)
        reference[0, 0, 0, :2] = 1.0, 1.2  # 0.75 is a logit of 1.0986
        net = made("liver", reference)
        net = tiny.spec("liver", threshold=0.75), *net[1:]
        verdict = verdict_on(changed(net, (0, 0, 0), 1.2), net, 1)
        assert (verdict.accepted, verdict.flipped, verdict.compared_pixels) == (True, 1, {"liver": 4095})
        assert verdict.largest_flip_margin == pytest.approx(0.0986, abs=1e-3)

    @pytest.mark.parametrize(("pixels", "accepted"), [(8, True), (9, False)])
    def test_the_share_of_labels_that_flip(self, pixels, accepted):
        assert 8 / 8192 < FLIP_SHARE < 9 / 8192
        reference = np.full((2, 1, 64, 64), 0.01)
        net = made("liver", reference)
        verdict = verdict_on(changed(net, (0, 0, slice(pixels)), -0.01), net, 4)
        assert (verdict.flipped, verdict.accepted) == (pixels, accepted)
        if not accepted:
            begins(verdict, "another label in 0.11% of the pixels, not in at most 0.10%")

    @pytest.mark.parametrize(("missed", "accepted"), [(3, True), (4, True), (5, False)])
    def test_dice(self, missed, accepted):
        """Of 250 pixels; few enough flips of 8192, and near the threshold."""
        dice = 2 * (250 - missed) / (500 - missed)
        assert (dice >= DICE) == accepted
        reference = np.full((2, 1, 64, 64), -0.01)
        reference[0, 0].flat[:250] = 0.01
        net = made("liver", reference)
        verdict = verdict_on(changed(net, (0, 0, slice(missed)), -0.01), net, 16)
        assert verdict.dice == {"liver": pytest.approx(dice)}
        assert verdict.accepted == accepted
        if not accepted:
            begins(verdict, "liver: Dice 0.9899 with the reference's 250 pixels, not 0.99 or more")

    def test_dice_counts_what_is_too_much_too(self):
        reference = np.full((2, 1, 64, 64), -0.01)
        reference[0, 0].flat[:250] = 0.01
        net = made("liver", reference)
        verdict = verdict_on(changed(net, (0, 60, slice(6)), 0.01), net, 1)
        assert verdict.dice == {"liver": pytest.approx(500 / 506)}
        begins(verdict, "liver: Dice 0.9881")

    def test_dice_is_of_each_class(self):
        reference = np.zeros((2, 3, 64, 64))
        reference[:, 1] = -0.01
        reference[:, 2] = -0.02
        reference[:, 1, :32] = 0.01  # liver in 4096 pixels, of which 250 ...
        reference[0, 2].flat[:250] = 0.02  # ... are tumour
        net = made("one-step", reference)
        verdict = verdict_on(changed(net, (2, 0, slice(6)), -0.02), net, 1)
        assert verdict.compared_pixels == {"liver": 4096 - 250, "tumour": 250}
        assert verdict.dice == {
            "liver": pytest.approx(2 * 3846 / (2 * 3846 + 6)),
            "tumour": pytest.approx(488 / 494),
        }
        begins(verdict, "tumour: Dice 0.9879")

    @pytest.mark.parametrize(("size", "judged"), [(MIN_PIXELS, True), (MIN_PIXELS - 1, False)])
    def test_dice_needs_an_object(self, size, judged):
        reference = np.full((2, 1, 64, 64), -0.01)
        reference[0, 0].flat[:size] = 0.01
        net = made("liver", reference)
        verdict = verdict_on(changed(net, (0, 0, slice(8)), -0.01), net, 1)
        assert verdict.accepted != judged
        assert (verdict.dice["liver"] is not None) == judged
        assert verdict.compared_pixels == {"liver": size}
        if not judged:
            assert f"liver in {size} pixels only" in str(verdict)

    @pytest.mark.parametrize("precision", ["fp16", "fp32"])
    def test_black_is_found_even_where_nothing_is_to_be_found(self, precision):
        """No label differs; the typical difference of logits tells."""
        bound = LOGIT_BOUND[precision]
        net = made("liver", np.full((2, 1, 64, 64), -1.0))
        for factor, accepted in ((0.9, True), (1.1, False)):
            out = np.full((4, 1, 64, 64), factor * bound - 1, DTYPE[precision])
            verdict = verdict_on(lambda rows, out=out: out, net, 4, precision)
            assert verdict.accepted == accepted
            assert verdict.max_difference == pytest.approx(factor * bound, abs=1e-3)
            assert verdict.rms_difference == pytest.approx(factor * bound, abs=1e-3)
        begins(verdict, "logits are off by")

    def test_no_label_of_the_tumour_net_counts_outside_the_liver(self):
        images = np.random.default_rng(0).uniform(0.25, 1, (2, 1, 64, 64))
        images[:, :, 32:] = 0
        reference = np.full((2, 1, 64, 64), 1.0)
        for role, row, flipped in (("tumour", 40, 0), ("tumour", 20, 64), ("liver", 40, 64)):
            net = made(role, reference, images)
            verdict = verdict_on(changed(net, (0, row), -1.0), net, 4)
            assert verdict.flipped == flipped
            assert verdict.accepted == (flipped == 0)
            assert (verdict.dice[role] == 1) == (flipped == 0)
            pixels = images.size // 2 if role == "tumour" else images.size
            assert verdict.flipped_share == flipped / pixels
            assert verdict.compared_pixels == {role: pixels}
        net = made("tumour", reference, images)
        begins(verdict_on(changed(net, (0, 40, 0), np.nan), net, 4), "NaN or infinity instead of 1 logits")

    @pytest.mark.parametrize(("channel", "flips"), [(0, 0), (1, 0), (2, 1)])
    def test_nan_is_the_lowest_logit(self, channel, flips):
        reference = np.zeros((2, 3, 64, 64))
        reference[:, 2] = 5
        net = made("one-step", reference)
        verdict = verdict_on(changed(net, (channel, 0, 0), np.nan), net, 4)
        assert verdict.flipped == flips
        begins(verdict, *["NaN or infinity instead of 1 logits", "another label in 1 pixels"][: 1 + flips])

    def test_only_what_is_finite_in_the_reference_is_compared(self):
        reference = np.full((2, 1, 64, 64), 1.0)
        reference[0, 0, 0, :3] = np.nan, np.inf, -np.inf
        net = made("liver", reference)
        for value in (np.nan, np.inf, -5.0):
            verdict = verdict_on(changed(net, (0, 0, slice(3)), value), net, 4)
            assert verdict.accepted
            assert json.loads(json.dumps(verdict.to_json(), allow_nan=False))["max_difference"] == 0
        begins(
            verdict_on(changed(net, (0, 0, slice(5)), np.nan), net, 4),
            "NaN or infinity instead of 2 logits",
            "another label in 2 pixels",
        )


class TestVerdict:
    @pytest.fixture
    def good(self, nets) -> Verdict:
        return verdict_on(sound(nets["one-step"]), nets["one-step"], 4)

    @pytest.fixture
    def bad(self, nets) -> Verdict:
        net = nets["liver"]
        return verdict_on(lambda rows: np.full_like(rows, np.nan), net, 4)

    def test_json_and_back(self, good, bad):
        for verdict in (good, bad):
            text = json.dumps(verdict.to_json(), allow_nan=False)
            assert Verdict.from_json(json.loads(text)) == verdict
            assert json.loads(text)["accepted"] is verdict.accepted
        assert bad.to_json()["reasons"] == list(bad.reasons)

    def test_in_the_sidecar_and_back(self, good, bad, tmp_path, monkeypatch):
        monkeypatch.setenv("TRTSEG_CACHE", str(tmp_path))
        of, data = key(), b"engine"
        cache.obtain(of, lambda: (data, sidecar(of, data)))
        path = tmp_path / "engines" / of.file_name
        for verdict in (bad, good):
            cache.accept(path, verdict.to_json(), sha256=sidecar(of, data).sha256)
            (entry,) = cache.entries()
            assert Verdict.from_json(entry.sidecar.acceptance) == verdict

    @pytest.mark.parametrize(
        "change",
        [
            {"accepted": False},
            {"accepted": None},
            {"reasons": ["something"]},
            {"reasons": "text"},
            {"reasons": None},
            {"reasons": [3]},
            {"dice": []},
            {"dice": {"liver": "high"}},
            {"dice": {"heart": None}},
            {"compared_pixels": 3},
            {"surplus": 1},
        ],
    )
    def test_anything_else_is_to_be_judged_again(self, good, change):
        assert Verdict.from_json(good.to_json()) is not None
        assert Verdict.from_json({**good.to_json(), **change}) is None

    def test_nothing_and_parts_are_to_be_judged_again(self, good):
        for name in good.to_json():
            if name != "criteria":
                assert Verdict.from_json({k: v for k, v in good.to_json().items() if k != name}) is None
        assert Verdict.from_json(None) is None
        assert Verdict.from_json({}) is None
        assert Verdict.from_json({"accepted": True}) is None

    def test_it_holds_for_one_gpu_and_one_driver(self, good, bad):
        for verdict in (good, bad):
            assert verdict.holds_for("a GPU", "1.2")
            assert not verdict.holds_for("another GPU", "1.2")
            assert not verdict.holds_for("a GPU", "1.3")
            assert not verdict.holds_for("a GPU", None)
        older = Verdict.from_json({**good.to_json(), "criteria": CRITERIA - 1})
        assert not older.holds_for("a GPU", "1.2")
        unknown = Verdict.from_json({**good.to_json(), "driver": None})
        assert unknown.holds_for("a GPU", None)
        assert not unknown.holds_for("a GPU", "1.2")

    def test_in_one_line(self, good, bad):
        assert str(good).startswith(
            "accepted on a GPU, driver 1.2: 8 slices in each of 4 slots, 0 pixels unlike openv"
        )
        assert str(good).endswith(" fp32, liver Dice 1.0000, tumour Dice 1.0000")
        assert str(bad).startswith("rejected on a GPU, driver 1.2: NaN or infinity instead of 32768 logits")
        assert str(bad).endswith("; ".join(bad.reasons[1:]))
        assert "\n" not in str(good) + str(bad)

    @pytest.mark.parametrize(
        "out",
        [
            np.zeros((4, 1, 64, 64), np.float32),
            np.zeros((3, 1, 64, 64), np.float16),
            np.zeros((4, 3, 64, 64), np.float16),
        ],
        ids=["type", "rows", "channels"],
    )
    def test_a_runner_that_gives_something_else(self, nets, out):
        with pytest.raises(
            ArgumentError, match=r"run: gave .*; expected the logits of liver sm_86 fp16 batch 4"
        ):
            verdict_on(lambda rows: out, nets["liver"], 4)

    def test_slices_of_another_net(self, nets):
        spec, onnx, images, logits = nets["liver"]
        for wrong in (images[:0], logits[:0]), (images[:, :, :9], logits), (images, logits[1:]):
            with pytest.raises(ArgumentError, match="images, reference: got"):
                verdict_on(lambda rows: rows, (spec, onnx, *wrong), 4)

    def test_what_the_engine_raises_is_passed_on(self, nets):
        with pytest.raises(ZeroDivisionError):
            verdict_on(lambda rows: 1 // 0, nets["liver"], 4)


class TestCalibration:
    def test_the_tumour_net_gets_what_it_gets_in_the_cascade(self, nets):
        liver, tumour = nets["liver"], nets["tumour"]
        inside = liver[3] > liver[0].logit_threshold
        assert inside.any(axis=(1, 2, 3)).any()
        assert not tumour[2][~inside].any()
        hu = np.rint(liver[2] * 400 - 160)  # exact where the liver's window did not clamp
        known = inside & (liver[2] < 1)
        expected = np.clip((hu[known] + 40) / 240, 0, 1)
        np.testing.assert_allclose(tumour[2][known], expected, atol=1e-5)

    def test_slices_and_logits(self, net):
        spec, onnx, images, logits = net
        assert (images.dtype, logits.dtype) == (np.float32, np.float32)
        assert images.shape == (8, 1, *spec.size)
        again = np.empty_like(logits)
        OpenVinoEngine(onnx, spec, "fp32").run(images, again)
        assert (again == logits).all()
        assert images.min() == 0
        assert 0.5 < images.max() <= 1
        assert len({image.tobytes() for image in images}) == 8, "a mix-up of two slices shows"

    @pytest.mark.parametrize("size", [(64, 64), (256, 256), (160, 96)])
    def test_the_slices_are_scaled_and_padded(self, tmp_path, monkeypatch, size):
        fits, prepare = [], _core.prepare
        monkeypatch.setattr(
            _core, "prepare", lambda hu, fit, *rest: (fits.append(fit), prepare(hu, fit, *rest))
        )
        calibration(models.find(one_step_model(tmp_path, size=size)))
        (fit,) = fits
        assert all(1.2 < step < 1.4 for step in fit.step)
        assert fit.net == size
        assert fit.extent != size
        assert max(fit.offset) >= 6

    def test_they_depend_on_the_spec_only(self, tmp_path, nets):
        first, again = (calibration(models.find(one_step_model(tmp_path / name))) for name in "ab")
        for a, b in zip(first["one-step"], again["one-step"], strict=True):
            assert (a == b).all()
        assert (first["one-step"][0] == nets["one-step"][2]).all()

    @pytest.mark.parametrize("fit", ["fit", "native"])
    @pytest.mark.parametrize("size", [(48, 64), (80, 32)])
    def test_any_size_and_fit(self, tmp_path, size, fit):
        images, logits = calibration(models.find(one_step_model(tmp_path, size=size, fit=fit)))["one-step"]
        assert images.shape == (8, 1, *size)
        assert logits.shape == (8, 3, *size)
        winner = logits.argmax(axis=1)
        assert ((winner == 1).sum(), (winner == 2).sum()) > (100, 30)
        columns = images.any(axis=(0, 1, 2))
        assert not columns.all(), "the body is whole"

    def test_without_openvino_there_is_no_reference(self, tmp_path, monkeypatch):
        files = models.find(one_step_model(tmp_path))
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(DeviceError, match=r"OpenVINO .*; it .* gives the FP32 reference .*: pip install"):
            calibration(files)

    def test_a_net_that_gives_nan_in_fp32(self, tmp_path):
        spec = tiny.spec("one-step")
        net = tiny.convolution(np.ones((3, 1, 1, 1)), np.array([0, np.nan, 0]), spec)
        folder = tiny.write_model(tmp_path, {"one-step": (spec, net)})
        with pytest.raises(ModelError, match="one-step net: gives NaN or infinity in FP32"):
            calibration(models.find(folder))


def test_the_shipped_model():
    files = models.find("default")
    found = calibration(files)
    liver, tumour = files.spec.nets
    livers = (found["liver"][1] > liver.logit_threshold).sum(axis=(1, 2, 3))
    inside = found["tumour"][0] > 0
    tumours = ((found["tumour"][1] > tumour.logit_threshold) & inside).sum(axis=(1, 2, 3))
    assert ((livers > 1000) & (tumours > 200)).sum() >= 3, "liver with lesions"
    assert ((livers > 1000) & (tumours == 0)).sum() >= 2, "liver without"
    assert (livers == 0).sum() >= 1, "nothing"
    for spec, sizes in ((liver, livers), (tumour, tumours)):
        images, logits = found[spec.role]
        net = spec, b"", images, logits
        verdict = verdict_on(sound(net), net, 4)
        assert verdict.accepted, verdict
        assert verdict.compared_pixels == {spec.role: int(sizes.sum())}
        assert verdict.dice[spec.role] > 0.9995
        black = verdict_on(lambda rows: np.zeros_like(rows), net, 4)
        assert len(black.reasons) == 4, black


def as_fp16(x):
    """A torch.Tensor rounded to FP16, in FP32 again."""
    return x.half().float()


@pytest.mark.parametrize("role", ["liver", "tumour"])
def test_the_shipped_nets_in_emulated_fp16(role):
    """Weights and activations rounded to FP16, sums in FP32 as on tensor cores: well within all bounds."""
    import onnx
    import torch

    from training.unet import UNet, folded

    files = models.find("default")
    spec = next(net for net in files.spec.nets if net.role == role)
    net = folded(UNet())
    weights = onnx.load_from_string(files.read(role)).graph.initializer
    arrays = {w.name: torch.from_numpy(onnx.numpy_helper.to_array(w).copy()) for w in weights}
    net.load_state_dict({name: as_fp16(array) for name, array in arrays.items()})
    for part in net.modules():
        if not list(part.children()):
            part.register_forward_hook(lambda part, inputs, output: as_fp16(output))
    images, reference = calibration(files)[role]
    with torch.no_grad():
        logits = net(as_fp16(torch.from_numpy(images))).numpy()
    emulated = spec, b"", images, reference
    verdict = verdict_on(lambda rows: logits[numbers(emulated, rows)].astype(rows.dtype), emulated, 1)
    assert verdict.accepted, verdict
    assert 0 < verdict.max_difference < LOGIT_BOUND["fp16"] / 2
    assert verdict.largest_flip_margin < LOGIT_BOUND["fp16"] / 4
    assert verdict.flipped_share < FLIP_SHARE / 2
    assert 1 - verdict.dice[role] < (1 - DICE) / 2
