"""Pixels of DICOM files: every transfer syntax and way to store values, each against values known beforehand."""

from __future__ import annotations

import base64
import io
import tracemalloc
import zipfile
import zlib

import dicom_made as made
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from trtseg.errors import InputError, OutOfMemoryError
from trtseg.io import load
from trtseg.io.dicom import one_of_each_series, pixels, read_slice
from trtseg.io.find import find_cts

Y, X = np.mgrid[:16, :24]
PICTURE = ((Y * 37 + X * 11) % 4096).astype(np.uint16)  # 0 to 808
HU = PICTURE.astype(np.int16) - 1024

# PICTURE, encoded by imagecodecs: OpenJPH, liblj92, libjpeg-turbo of 12 bits at quality 98.
HTJ2K = (
    "|4;u>04YEK0000O0000G00000000000000O0000G0000000000009pH0sl|{2mk^A000XAQUDA90ssL30t5s=0smY83LuD(kdTOoi2q~&7X"
    "SfIaAj^vP)HzFWpW@eE;2SQGcNy-015yA0001!00IA#zyL1b|9{v1r~iNaPyZACd;fF(r~fX0$3M}3?RW8C^%wB}d0Y3V{HpyEzhA$;&(s}"
    "$vg!sx05Q4%zyK8x00nRmLipNn0(AhSBoc{4`rr`uApz{T0Kfn%AOIG~L_|bH^YEvqr^0vuNCZI;1VIo4LH_>`0SF%bgdltN5P|H!0RPz"
)
LOSSLESS = (
    "|JeV;02crO0RaI30000000000000051O^QM!vG5m01yBe0RRyI|Jncu0RR97008Iz0Is_0uDa{4y6djG>#n-%uDbN8rkZJ{nrWt*X{MTKrk"
    "ZJ{o|QDyO*GR@G}BEq(@iwfO*GTerkZJ{nrWt*X{MTKrkZJ{ntD{zO*GR@G}BEq(@iwfO*GR_N}6e=nrWt*X{MTKrkZJ{nrZ1%O*GR@G}BE"
    "q(@iwfO*GR@Jt}FYnrWt*X{MTKrkZJ{nrWw{O*GR@G}BEq(@iwfO*GR@H1w&anrWt*X{MTKrkZJ{nrWt<l{C{$G}BEq(@iwfO*GR@G}F?in"
    "rWt*X{MTKrkZJ{nrWt*dQ{U*G}BEq(@iwfO*GR@G}BK?nrWt*X{MTKrkZJ{nrWt*Y3Wl<G}BEq(@iwfO*GR@G}BEzDru&gX{MTKrkZJ{nrW"
    "t*X{P_#"
)
EXTENDED = (
    "|JeWF01!$>Nk#wx0RR9200961|JwjV009930RaI40RaI40RaI40s#R50RaL50RaL60s;a80s;a90|WyD0|NsB0s{mC0|W#F1Ox&D1qB2I1q"
    "1{H1pmPR3k(1d02l!Q5di<h02KfM0RR9100000000000000A4*$de91s8i1_J;90000000000000083MVy1Qetuc+5iXv0RR9$0EIs$$z6("
    "WFskOEU=w7n#WxsLb5O7evR7i8j4HXPcm&xiu}#JmT+}QAY?aui;|i{776CR&>{D@tS2Z91*#"
)


def coded(syntax, frame: bytes, **attributes):
    """PICTURE in a compressed instance."""
    dataset = made.instance(PICTURE, BitsStored=12, RescaleIntercept=-1024, **attributes)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    return dataset


def read_again(dataset, tmp_path) -> np.ndarray:
    """HU of a file with that dataset; of the dataset itself they are the same."""
    path = made.save(tmp_path / "slice", dataset)
    header, hu = read_slice(path)
    again = pydicom.dcmread(path)
    other, same = read_slice(again)
    assert np.array_equal(hu, same)
    assert header == other
    assert header.file_meta == other.file_meta
    assert "PixelData" in again
    assert "PixelData" not in header
    return hu


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_lossless_syntaxes_that_pydicom_writes(syntax, tmp_path):
    picture = np.tile(PICTURE, (4, 4))  # JPEG 2000 wants 32 pixels or more
    dataset = made.instance(picture, BitsStored=12, RescaleIntercept=-1024)
    dataset.compress(syntax, generate_instance_uid=False)
    hu = read_again(dataset, tmp_path)
    assert (hu.dtype, hu.flags.c_contiguous) == (np.int16, True)
    assert np.array_equal(hu, np.tile(HU, (4, 4)))


@pytest.mark.parametrize(
    ("syntax", "text", "off"),
    [(HTJ2KLossless, HTJ2K, 0), (JPEGLosslessSV1, LOSSLESS, 0), (JPEGExtended12Bit, EXTENDED, 4)],
)
def test_syntaxes_that_it_does_not_write(syntax, text, off, tmp_path):
    hu = read_again(coded(syntax, base64.b85decode(text)), tmp_path)
    assert np.abs(hu.astype(int) - HU).max() <= off


def test_the_size_of_a_jpeg_picture_stands_behind_other_segments_and_fill_bytes():
    for fill in (b"", b"\xff", b"\xff\xff"):
        for start in (b"\xff\xc1", b"\xff\xf7"):  # JPEG of 12 bits, JPEG-LS
            frame = (
                b"\xff\xd8" + fill + b"\xff\xfe\0\4ab" + fill + start + b"\0\x0b\x0c\0\x10\0\x18\1\1\x11\0"
            )
            assert pixels.coded_size(frame) == (16, 24, 1)
            assert pixels.coded_size(frame.replace(start, b"\0" + start[1:])) is None  # damaged


def test_jpeg_of_8_bits(tmp_path):
    picture, file = (PICTURE // 4).astype(np.uint8), io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=100)
    dataset = made.instance(picture, RescaleSlope=4, RescaleIntercept=-1024)
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([file.getvalue()])
    assert np.abs(read_again(dataset, tmp_path) + 1024 - picture * 4.0).max() <= 8


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_uncompressed_syntaxes(syntax, tmp_path):
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    dataset = made.instance(PICTURE, RescaleIntercept=-1024, PixelData=PICTURE.astype(f"{order}u2").tobytes())
    dataset.file_meta.TransferSyntaxUID = syntax
    assert np.array_equal(read_again(dataset, tmp_path), HU)


def test_bytes_in_big_endian_words_come_in_pairs():
    """The last of an odd number of pixels lies in the second byte of its word, which must be there."""
    stored = np.arange(15, dtype=np.uint8).reshape(3, 5)
    words = np.append(stored, np.uint8(99)).reshape(-1, 2)[:, ::-1].tobytes()
    dataset = made.instance(stored, PixelData=words)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    assert np.array_equal(read_slice(dataset)[1], stored)
    dataset.PixelData = words[:-1]
    with pytest.raises(InputError, match="15 bytes of pixels, and a header that asks for 16"):
        read_slice(dataset)
    dataset["PixelData"].VR = "OB"
    dataset.PixelData = stored.tobytes()
    assert np.array_equal(read_slice(dataset)[1], stored)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("preamble", [True, False])
def test_files_without_meta_header_or_transfer_syntax(syntax, preamble, tmp_path):
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    dataset = made.instance(PICTURE, RescaleIntercept=-1024, PixelData=PICTURE.astype(f"{order}u2").tobytes())
    del dataset.file_meta
    file = io.BytesIO()
    file.write(bytes(128) + b"DICM" if preamble else b"")
    body = io.BytesIO()
    pydicom.dcmwrite(body, dataset, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    file.write(body.getvalue())
    path = tmp_path / "bare"
    path.write_bytes(file.getvalue())
    assert np.array_equal(read_slice(path)[1], HU)


def test_stored_values_of_every_kind(tmp_path):
    values = np.arange(-1024, 2048, 8, dtype=np.int16).reshape(16, 24)
    for dtype, intercept in ((np.int16, 0), (np.uint16, -1024), (np.int32, 0), (np.uint32, -1024)):
        stored = (values.astype(np.int64) - intercept).astype(dtype)
        assert np.array_equal(
            read_again(made.instance(stored, RescaleIntercept=intercept), tmp_path), values
        ), dtype
    # 12 bits of 16, and junk in the others.
    for dtype, intercept in ((np.int16, 0), (np.uint16, -1024)):
        stored = (values.astype(np.int32) - intercept) & 0xFFF
        junk = (stored | 0xA000).astype(np.uint16).view(dtype)
        dataset = made.instance(junk, BitsStored=12, RescaleIntercept=intercept)
        expected = values if dtype == np.uint16 else ((stored + 2048) % 4096 - 2048)
        assert np.array_equal(read_again(dataset, tmp_path), expected)
    stored = np.full((16, 24), 5, np.int16)
    stored[0, :4] = 30000, -30000, 1, 3
    hu = read_again(made.instance(stored, RescaleSlope="0.5", RescaleIntercept="1"), tmp_path)
    assert hu[0, :5].tolist() == [15001, -14999, 2, 2, 4]  # 1.5, 2.5 and 3.5 are rounded half to even
    hu = read_again(made.instance(stored, RescaleSlope=2, RescaleIntercept=-1024), tmp_path)
    assert hu[0, :3].tolist() == [32767, -32768, -1022]  # saturated
    hu = read_again(made.instance(stored, RescaleIntercept="-1000.6"), tmp_path)
    assert hu[0, :5].tolist() == [28999, -31001, -1000, -998, -996]


def test_padding_becomes_air(tmp_path):
    stored = np.zeros((16, 24), np.int16) + 1064
    stored[0, :4] = -2000, -1999, 0, 30000

    def first(**attributes):
        return read_again(made.instance(stored, RescaleIntercept=-1024, **attributes), tmp_path)[
            0, :5
        ].tolist()

    assert first() == [-3024, -3023, -1024, 28976, 40]
    assert first(PixelPaddingValue=-2000) == [-1000, -3023, -1024, 28976, 40]
    assert first(PixelPaddingValue=-2000, PixelPaddingRangeLimit=0) == [-1000, -1000, -1000, 28976, 40]
    assert first(PixelPaddingValue=30000, PixelPaddingRangeLimit=20000) == [-3024, -3023, -1024, -1000, 40]
    dataset = made.instance(stored, RescaleIntercept=-1024)
    dataset.add_new("PixelPaddingValue", "US", 65536 - 2000)  # of the other sign, as anonymisers write it
    assert read_again(dataset, tmp_path)[0, 0] == -1000
    unsigned = np.full((16, 24), 1064, np.uint16)
    unsigned[0, 0] = 63536  # outside of the 12 bits that are stored
    dataset = made.instance(unsigned, BitsStored=12, RescaleIntercept=-1024, PixelPaddingValue=63536)
    assert read_again(dataset, tmp_path)[0, :2].tolist() == [-1000, 40]
    for dtype, padding in (
        (np.int16, -2000),
        (np.int16, 30),
        (np.uint16, 3000),
    ):  # inside, and junk in the others
        values = np.full((16, 24), 1064, np.int32)
        values[0, 0] = padding
        junk = ((values & 0xFFF) | 0xA000).astype(np.uint16).view(dtype)
        dataset = made.instance(junk, BitsStored=12, RescaleIntercept=-1024, PixelPaddingValue=padding)
        assert read_again(dataset, tmp_path)[0, :2].tolist() == [-1000, 40]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"Rows": 17}, "768 bytes of pixels, and a header that asks for 816"),
        ({"Rows": 8}, "768 bytes of pixels, and a header that asks for 384"),
        ({"Rows": 0}, "frames of 0 x 24 pixels; expected"),
        ({"Rows": 60000, "Columns": 60000}, "frames of 60000 x 60000 pixels; expected"),
        ({"NumberOfFrames": 2_000_000_000}, "2000000000 frames"),
        ({"NumberOfFrames": 2}, "2 frames without functional groups"),
        ({"BitsAllocated": 12}, "BitsAllocated 12"),
        ({"BitsStored": 20}, "BitsStored 20"),
        ({"BitsStored": 12, "HighBit": 15}, "HighBit is 15 for 12 bits; expected 11"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "expected grey values"),
        ({"PixelData": None}, "holds no pixels"),
        ({"RescaleSlope": 0}, "RescaleSlope 0 and RescaleIntercept 0 give no HU"),
        ({"RescaleIntercept": 3e9}, "RescaleIntercept 3e\\+09 give no HU"),
        ({"RescaleIntercept": -2e6}, "RescaleSlope 1 and RescaleIntercept -2e\\+06 give no HU"),
        ({"RescaleSlope": -1e20}, "RescaleSlope -1e\\+20 and"),
        ({"ModalityLUTSequence": [pydicom.Dataset()]}, "a Modality LUT in the place of slope and intercept"),
        ({"RescaleType": "Z_EFF"}, "values are of type 'Z_EFF', not HU"),
        ({"ImagePositionPatient": None}, "no ImagePositionPatient; expected"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "are no geometry"),
        ({"PixelSpacing": [0, 1]}, "are no geometry"),
    ],
)  # fmt: skip
def test_headers_that_contradict_their_pixels(attributes, message, tmp_path):
    attributes = dict(attributes)
    pixels_ = attributes.pop("PixelData", 0)
    dataset = made.instance(PICTURE, **attributes)
    if pixels_ is None:
        del dataset.PixelData
    with pytest.raises(InputError, match=message) as raised:
        read_slice(made.save(tmp_path / "slice", dataset))
    assert str(raised.value).startswith(str(tmp_path / "slice"))
    assert "SECRET" not in str(raised.value).upper()


@pytest.mark.parametrize(("syntax", "text"), [(HTJ2KLossless, HTJ2K), (JPEGLosslessSV1, LOSSLESS)])
def test_a_compressed_picture_that_is_larger_than_its_header_says(syntax, text, tmp_path):
    frame = bytearray(base64.b85decode(text))
    size = (16).to_bytes(4) if syntax == HTJ2KLossless else (16).to_bytes(2)
    at = (
        frame.index((24).to_bytes(4) + size) + 4
        if syntax == HTJ2KLossless
        else frame.index(size + (24).to_bytes(2))
    )
    frame[at : at + len(size)] = (60000).to_bytes(len(size))
    with pytest.raises(
        InputError, match="a compressed picture of 60000 x 24 x 1 pixels in a file of 16 x 24"
    ):
        read_slice(made.save(tmp_path / "bomb", coded(syntax, bytes(frame))))


def test_compressed_pixels_that_cannot_be_decoded(tmp_path, monkeypatch):
    frame = base64.b85decode(LOSSLESS)
    with pytest.raises(InputError, match="cannot be decoded; the file is damaged"):
        read_slice(made.save(tmp_path / "damaged", coded(JPEGLosslessSV1, frame[:10] + frame[40:])))
    with pytest.raises(InputError, match="a compressed picture without an end; the file is damaged"):
        read_slice(made.save(tmp_path / "cut", coded(JPEGLosslessSV1, frame[:100])))
    with pytest.raises(InputError, match=r"transfer syntax 1[.0-9]*102 is not known"):
        read_slice(made.save(tmp_path / "video", coded("1.2.840.10008.1.2.4.102", frame)))
    dataset = coded(JPEGLosslessSV1, frame)
    del dataset.file_meta.TransferSyntaxUID
    with pytest.raises(InputError, match="compressed pixels, but no Transfer Syntax UID"):
        read_slice(dataset)

    class Missing:
        is_available, missing_dependencies = False, ["pylibjpeg>=2.0", "pylibjpeg-libjpeg>=2.1"]

    monkeypatch.setattr("pydicom.pixels.decoders.base.get_decoder", lambda uid: Missing)
    with pytest.raises(
        InputError, match=r"no decoder for JPEG Lossless.* pylibjpeg-libjpeg.*trtseg\[dicom\]"
    ):
        read_slice(made.save(tmp_path / "other", coded(JPEGLosslessSV1, frame)))


def test_a_deflated_file_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr("trtseg.io.dicom.dataset.MAX_BYTES", 1 << 22)
    dataset = made.instance(PICTURE)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = made.save(tmp_path / "bomb", dataset)
    assert np.array_equal(read_slice(path)[1], PICTURE)
    start = path.read_bytes()
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = packer.compress(bytes(1 << 23)) + packer.flush()
    meta = pydicom.filereader.read_file_meta_info(path)
    path.write_bytes(start[: 144 + meta.FileMetaInformationGroupLength] + bomb)
    with pytest.raises(InputError, match="bomb: unpacks to more than"):
        read_slice(path)


@pytest.mark.parametrize("packed", ["deflated", "in a zip"])
def test_a_small_file_that_unpacks_to_more_than_the_memory_is_told_before_it_is_unpacked(
    tmp_path, monkeypatch, packed
):
    dataset = made.instance(PICTURE)
    dataset.add_new(0x7FE11010, "OB", bytes(300 << 20))
    if packed == "deflated":
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = made.save(tmp_path / "ct/bomb.dcm", dataset)
    if packed != "deflated":
        with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(path, "bomb.dcm")
        path = tmp_path / "bomb.zip"
    del dataset
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr("trtseg.resources.free_memory", lambda: 200 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(
            OutOfMemoryError, match=r"bomb.*: needs about \d+ MB of memory, and 210 MB are free"
        ):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    if packed == "deflated":  # the others of a folder are found all the same
        assert find_cts(tmp_path) == ([tmp_path / "ct"], [])
        assert one_of_each_series([path]) == [path]


def test_the_size_of_a_compressed_picture_is_read_from_its_header():
    assert pixels.coded_size(base64.b85decode(HTJ2K)) == (16, 24, 1)
    assert pixels.coded_size(base64.b85decode(EXTENDED)) == (16, 24, 1)
    assert pixels.coded_size(b"") is pixels.coded_size(b"\xff\xd8\xff") is None
