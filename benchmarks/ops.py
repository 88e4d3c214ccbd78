"""How fast the fused ops are on this CPU, beside a plain copy of as many bytes.

GB/s counts the bytes that an op must touch: every input read once, every output written once (l2 of label only
where its slice has a liver). The copy (np.copyto, one thread) reads one half of the same bytes and writes the
other half.
"""

import os
import statistics
import time
from collections.abc import Callable

import numpy as np

from training.program import parser_of, plain_errors
from trtseg import _core
from trtseg.fit import Fit

N, NATIVE, NET = 32, (512, 512), (256, 256)
WINDOW = (-100.0, 400.0)


def seconds(call: Callable[[], None], repeats: int) -> float:
    """Median time of a call, after two to warm up."""
    call(), call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def blob_logits(radius: float) -> np.ndarray:
    """Logits of a disc on the net's grid in noise, FP32 [N, 1, H, W]."""
    y, x = np.mgrid[: NET[0], : NET[1]]
    inside = np.hypot(y - 0.5 * NET[0], x - 0.4 * NET[1]) < radius * NET[0]
    noise = np.random.default_rng(0).normal(0, 0.3, (N, 1, *NET))
    return (np.where(inside, 4.0, -4.0) + noise).astype(np.float32)


def cases(dtype: type, threads: int) -> list[tuple[str, list[np.ndarray], Callable[[], None]]]:
    """Return (name, arrays that must be touched, call) per op."""
    fit = Fit.whole_field_of_view(NATIVE, (1.0, 1.0), NET)
    hu = np.random.default_rng(0).integers(-1000, 1000, (N, *NATIVE)).astype(np.int16)
    hu_net, x = np.empty((N, *NET), np.int16), np.empty((N, 1, *NET), dtype)
    voxels, counts = np.empty(N, np.int32), np.empty((N, 2), np.int32)
    labels = np.empty((N, *NATIVE), np.uint8)
    l1, l2 = blob_logits(0.25).astype(dtype), blob_logits(0.05).astype(dtype)
    no_liver = np.full_like(l1, -4)
    l3 = np.concatenate([-l1, l1, l2], axis=1)

    def label(logits: np.ndarray) -> Callable[[], None]:
        return lambda: _core.label(logits, l2, (0.0, 0.0), fit, labels, counts, threads=threads)

    k = {"threads": threads}
    air, box, mask = np.full_like(hu, -1000), np.empty(4, np.int32), np.empty((61, 61), np.uint8)
    rows = hu[:, ::8]  # every eighth row is looked at
    return [
        ("frame, air", [air], lambda: _core.frame(air, box, **k)),
        ("thick", [rows, mask], lambda: _core.thick(hu, (0, 512, 0, 512), (8, 4), (8, 4), mask, **k)),
        ("prepare", [hu, hu_net, x], lambda: _core.prepare(hu, fit, WINDOW, hu_net, x, **k)),
        ("gate", [l1, hu_net, x], lambda: _core.gate(l1, hu_net, 0.0, WINDOW, x, voxels, **k)),
        ("label", [l1, l2, labels], label(l1)),
        ("label, no liver", [l1, labels], label(no_liver)),
        ("label3", [l3, labels], lambda: _core.label3(l3, fit, labels, counts, **k)),
    ]


@plain_errors()
def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--threads", type=int, default=0, help="0: all CPUs of this process (default)")
    parser.add_argument("--repeats", type=int, default=15, help="the median of these is reported")
    args = parser.parse_args()
    info = _core.build_info()
    print(
        f"{N} slices of {NATIVE[0]}x{NATIVE[1]} -> {NET[0]}x{NET[1]}, threads={args.threads or 'all'} ",
        end="",
    )
    print(f"of {len(os.sched_getaffinity(0))} CPUs, built by {info['compiler']}")
    print(f"{'op':<16} {'dtype':<8} {'MB':>6} {'ms':>7} {'ms/slice':>9} {'GB/s':>6} {'copy GB/s':>10}")
    for dtype in (np.float32, np.float16):
        for name, touched, call in cases(dtype, args.threads):
            nbytes = sum(array.nbytes for array in touched)
            source, target = np.ones(nbytes // 2, np.uint8), np.empty(nbytes // 2, np.uint8)
            t = seconds(call, args.repeats)
            copy = seconds(lambda s=source, t=target: np.copyto(t, s), args.repeats)
            print(
                f"{name:<16} {dtype.__name__:<8} {nbytes / 1e6:6.1f} {t * 1e3:7.2f} {t * 1e3 / N:9.3f} "
                f"{nbytes / t / 1e9:6.1f} {nbytes / copy / 1e9:10.1f}"
            )


if __name__ == "__main__":
    main()
