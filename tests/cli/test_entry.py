"""The way into the command line, however it is entered and however early it is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.real

WAYS = ([sys.executable, "-m", "headworks"], [str(Path(sys.executable).with_name("headworks"))])


@pytest.mark.parametrize("way", WAYS, ids=("module", "script"))
def test_ctrl_c_during_the_imports_ends_quietly_with_130(tmp_path: Path, way: list[str]) -> None:
    """The first library that the command line imports presses the keys."""
    # The handler that Python has, unless it was started with the signal ignored, as in the background.
    pressed = (
        "import os, signal, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(300)\n"
    )
    (tmp_path / "typer.py").write_text(pressed)
    result = _run(way, PYTHONPATH=str(tmp_path))
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize("way", WAYS, ids=("module", "script"))
def test_both_ways_lead_to_the_verbs(way: list[str]) -> None:
    result = _run([*way, "--version"])
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("headworks ")


def _run(command: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
