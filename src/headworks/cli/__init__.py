"""The command line: parses, calls, prints. One module per verb."""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point of `headworks` and `python -m headworks`.

    Everything is imported in here, so that Ctrl-C while that lasts ends as quietly as later: with 130.
    """
    try:
        from headworks.cli.app import app

        app()
    except KeyboardInterrupt:
        sys.exit(130)
