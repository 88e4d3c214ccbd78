"""Data sets, each listed by a function that takes its folder: listing is cheap, cases are read when needed."""

from training.readers.crop import lits_crop
from training.readers.dicom import chaos, ircadb
from training.readers.nifti import chaos_nifti, lits, msd
from training.readers.slices import negatives, png_slices

#: By the name of the option of ``python -m training.prepare``, in the order in which cases go into a store.
READERS = {
    "lits": lits,
    "msd": msd,
    "ircadb": ircadb,
    "chaos": chaos,
    "png": png_slices,
    "crop": lits_crop,
    "negatives": negatives,
}

__all__ = [
    "READERS",
    "chaos",
    "chaos_nifti",
    "ircadb",
    "lits",
    "lits_crop",
    "msd",
    "negatives",
    "png_slices",
]
