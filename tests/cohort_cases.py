"""What the tests of runs of a cohort share."""

from trtseg import cohort


def planned(inputs, folder, **options):
    """The cases of a cohort whose results go into a folder, which is there from now on."""
    folder.mkdir(exist_ok=True)
    with cohort.plan(inputs, folder, **options) as cases:
        return cases
