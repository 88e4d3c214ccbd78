"""``python -m trtseg``: the command line."""

from trtseg.cli import main

if __name__ == "__main__":
    main()
