"""What the tests of pages share: a made-up case, and what a browser shows of it."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from trtseg.fit import Fit
from trtseg.labels.probability import TumourLogits
from trtseg.result import Segmentation
from trtseg.volume import Geometry, Volume

LIVER, TUMOUR, MARK = 100, 20, 1200  # HU
NAME = "DOE^JANE <script>alert(1)</script>.nii.gz"
BOX = (slice(8, 28), slice(12, 44), slice(8, 48))  # of the liver [z, y, x]
LESIONS = (  # two blocks: each is a lesion of its own
    (slice(20, 26), slice(20, 30), slice(14, 24)),
    (slice(10, 13), slice(34, 40), slice(38, 44)),
)

TEAL, PINK = (60, 230, 200), (255, 70, 120)
AXES = {"axial": (1, 2), "coronal": (0, 2), "sagittal": (0, 1)}  # along rows, along columns
MM = (4.0, 3.0, 3.0)


def make_result(name=NAME, warnings=()):
    """A block of a liver with two blocks of lesions in a body, and something bright at its right, front and top."""
    hu = np.full((36, 60, 64), -1000, np.int16)
    hu[:, 4:56, 4:60] = -50
    hu[BOX] = LIVER
    labels = np.zeros(hu.shape, np.uint8)
    labels[BOX] = 1
    for box in LESIONS:
        hu[box], labels[box] = TUMOUR, 2
    hu[32:, 4:10, 4:12] = MARK
    geometry = Geometry.from_affine(hu.shape[::-1], np.diag([-3.0, -3.0, 4.0, 1.0]))
    volume = Volume(hu, geometry.canonical_affine(), geometry, name, tuple(warnings))
    made_by = {"model": "test", "model_version": "1", "sha256": {"liver.onnx": "0" * 64}, "device": "cpu"}
    planes = {z: np.full((12, 12), logit, np.float16) for z, logit in ((11, 0), (20, 1), (21, 3))}
    logits = TumourLogits(Fit.whole_field_of_view(hu.shape[1:], (3.0, 3.0), (12, 12)), planes)
    return Segmentation.measure(labels, volume, timings={"read": 0.5}, provenance=made_by, logits=logits)


class Told(list):
    """What the browser complained of and asked for."""

    def follow(self, page):
        page.on("console", lambda message: self.append(message.text))
        page.on("pageerror", lambda error: self.append(str(error)))
        page.on("dialog", lambda dialog: self.append(dialog.message))
        page.on("request", lambda request: request.url.startswith("data:") or self.append(request.url))


def opened(browser, path, **options):
    told = Told()
    page = browser.new_page(**{"viewport": {"width": 1300, "height": 900}, **options})
    told.follow(page)
    page.goto(path.as_uri())
    if path.stem == "seg":
        page.wait_for_selector("body[data-ready]")
    return page, told


def settle(page):
    """Wait until what was asked for is drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def at(page):
    settle(page)
    return [int(n) for n in page.get_attribute("body", "data-at").split(",")]


def pixels(page, figure):
    """RGB [rows, columns, 3] of what a canvas shows."""
    settle(page)
    url = page.evaluate("(figure) => document.querySelector(`${figure} canvas`).toDataURL()", figure)
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    return np.asarray(image.convert("RGB")).astype(int)


def coloured(image, colour):
    return (abs(image - colour) < 60).all(axis=-1)


def extent(mask, least=1):
    """First and last row and column with so many pixels of a mask."""
    ends = []
    for axis in (1, 0):
        found = np.flatnonzero(mask.sum(axis) >= least)
        ends += [found[0], found[-1] + 1]
    return np.array(ends)
