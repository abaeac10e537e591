"""How a verb ends that cannot go on: one clear sentence on stderr, and an exit code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import typer

from headworks.errors import PolicyError
from headworks.policy.load import load
from headworks.policy.settings import Policy


def fail(sentence: str, *, code: int = 2) -> NoReturn:
    """Say why, and leave with `code` (2: it could not be used as asked)."""
    complain(sentence)
    raise typer.Exit(code)


def complain(sentence: str) -> None:
    """Say why, where something is left to do before leaving."""
    typer.echo(f"headworks: {sentence}", err=True)


def policy_or_fail(path: Path, environ: Mapping[str, str] = os.environ) -> Policy:
    """The policy of that file, or the sentences that say what is wrong with it."""
    try:
        return load(path, environ)
    except PolicyError as error:
        fail(str(error))
