"""Many CTs: `plan` says which files are written for each of them, `run` makes the files.

>>> from trtseg import Segmenter, cohort
>>> with cohort.plan(["a.nii.gz", "b.nii.gz"], "results") as cases:      # doctest: +SKIP
...     for outcome in cohort.run(cases, Segmenter()):
...         print(outcome.case.source, outcome.error or outcome.result.liver_ml)

With `Workers`, several processes segment, here or on a Ray cluster; with a ``folder``, a run that was killed goes on:

>>> with cohort.plan(["scans"], "results") as cases:                     # doctest: +SKIP
...     for outcome in cohort.run(cases, cohort.Workers(jobs=8), folder="results"):
...         print(outcome.case.input, outcome.error or outcome.row["liver_ml"])
"""

from trtseg.cohort.case import Case, Outcome
from trtseg.cohort.planning import file_in, is_alone, plan
from trtseg.cohort.running import Workers, run

__all__ = ["Case", "Outcome", "Workers", "file_in", "is_alone", "plan", "run"]
