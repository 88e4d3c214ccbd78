"""What the tables of many cases have of each case; the page of all and the CSV file of a cohort share it."""

from __future__ import annotations

#: What tables have of the report of a case, see `trtseg.result.Segmentation.report`: heading, and how it is shown.
MEASURED = {
    "liver_ml": ("Liver, mL", ".1f"),
    "tumour_ml": ("Tumour, mL", ".1f"),
    "tumour_burden": ("Burden", ".1%"),
    "lesion_count": ("Lesions", "d"),
    "largest_mm": ("Largest, mm", ".1f"),
    "highest_probability": ("Highest probability", ".2f"),
}
