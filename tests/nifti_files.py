"""NIfTI files for the tests, written by nibabel, with header fields set byte for byte."""

import gzip

import nibabel as nib
import numpy as np

LPS = np.diag([-0.7, -0.8, 5.0, 1.0])


def ct(shape=(24, 20, 18)):
    """Make noise from air to bone in index order ``(i, j, k)``."""
    return np.random.default_rng(2).integers(-1000, 1000, shape).astype(np.int16)


def image(array=None, affine=LPS, cls=nib.Nifti1Image, order="<"):
    array = ct() if array is None else array
    header = cls.header_class(endianness=order)
    header.set_data_dtype(array.dtype)
    return cls(array, affine, header)


def save(folder, img=None, name="ct.nii.gz", **fields):
    """Save an image, and then set fields of the header in the file, exactly as given."""
    img = image() if img is None else img
    nib.save(img, folder / "saved.nii")
    data = bytearray((folder / "saved.nii").read_bytes())
    template = type(img.header).template_dtype.newbyteorder(img.header.endianness)
    header = np.frombuffer(data, template, 1).copy()
    for field, value in fields.items():
        header[0][field] = value
    data[: template.itemsize] = header.tobytes()
    path = folder / name
    path.write_bytes(gzip.compress(data, 1) if name.endswith("gz") else data)
    return path


def raw_header(path):
    """Read a header as bytes, without any of nibabel's repairs."""
    data = path.read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    for cls in (nib.Nifti1Header, nib.Nifti2Header):
        for order in "<>":
            template = cls.template_dtype.newbyteorder(order)
            header = np.frombuffer(data[: template.itemsize], template, 1)[0]
            if header["sizeof_hdr"] == template.itemsize:
                return header
    raise AssertionError("no header")
