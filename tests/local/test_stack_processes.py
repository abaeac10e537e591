"""One supervised child: it comes back when it dies, and it ends when it is told to."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from headworks.local import processes
from headworks.local.probe import wait_until
from headworks.local.processes import Child, Command

pytestmark = pytest.mark.real

PATIENCE = 60.0
"""Seconds after which something has not happened."""
SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEPER


def child(folder: Path, script: str, said: list[str], grace: float = 5.0) -> Child:
    command = Command((sys.executable, "-c", script), os.environ, folder / "log", grace=grace)
    return Child("part", command, rng=random.Random(7), say=said.append, changed=lambda: None)


async def up(part: Child, times: int = 1) -> bool:
    async def written() -> bool:
        return part.command.log.read_text().count("up\n") >= times

    return await wait_until(written, timeout=PATIENCE)


def lives(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


async def test_a_child_that_dies_comes_back_and_one_line_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    part = child(tmp_path, SLEEPER, said)
    await part.start()
    try:
        assert await up(part)
        first = part.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        assert await up(part, times=2)

        async def known() -> bool:  # the new one may be heard of before its keeper has got hold of it
            return part.pid not in (None, first)

        assert await wait_until(known, timeout=PATIENCE)
        assert part.restarts == 1
        assert len(said) == 1
        assert said[0].startswith("part ended (signal SIGKILL); it comes back in 0.")
    finally:
        await part.stop()
    assert part.pid is None


async def test_restarts_slow_down_while_it_keeps_dying(tmp_path: Path) -> None:
    said: list[str] = []
    part = child(tmp_path, "raise SystemExit(3)", said)
    await part.start()

    async def three() -> bool:
        return len(said) >= 3

    assert await wait_until(three, timeout=PATIENCE)
    await part.stop()
    pauses = [float(line.split()[-2]) for line in said[:3]]
    assert pauses == sorted(pauses)
    assert pauses[2] > 2 * pauses[0]
    assert said[0].startswith("part ended (exit code 3)")


async def test_stopping_ends_a_pause_before_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "FIRST_DELAY", 3600.0)
    monkeypatch.setattr(processes, "LAST_DELAY", 3600.0)
    said: list[str] = []
    part = child(tmp_path, "raise SystemExit(3)", said)
    await part.start()

    async def pausing() -> bool:
        return bool(said)

    assert await wait_until(pausing, timeout=PATIENCE)
    async with asyncio.timeout(PATIENCE):
        await part.stop()
    assert (part.pid, part.restarts, len(said)) == (None, 0, 1), "it did not come back"


async def test_a_child_that_does_not_listen_is_killed_after_its_grace(tmp_path: Path) -> None:
    said: list[str] = []
    part = child(tmp_path, DEAF, said, grace=0.2)
    await part.start()
    assert await up(part)
    await part.stop()
    assert part.pid is None
    assert said == ["part did not end within 0.2 s: killed"]


async def test_what_a_child_leaves_behind_goes_with_it(tmp_path: Path) -> None:
    script = (
        "import os, subprocess, sys; grandchild = subprocess.Popen([sys.executable, '-c', "
        "'import time; time.sleep(600)']); print(grandchild.pid); print('up', flush=True); os._exit(0)"
    )
    part = child(tmp_path, script, [])
    await part.start()
    assert await up(part)
    grandchild = int(part.command.log.read_text().split("\n")[0])

    async def gone() -> bool:
        return not lives(grandchild)

    assert await wait_until(gone, timeout=PATIENCE)
    await part.stop()


async def test_the_end_of_its_log_carries_its_name(tmp_path: Path) -> None:
    part = child(tmp_path, SLEEPER, [])
    await part.start()
    assert await up(part)
    await part.stop()
    assert part.last_lines() == "part | up"


async def test_a_command_that_does_not_exist_is_an_error_at_once(tmp_path: Path) -> None:
    command = Command((str(tmp_path / "none"),), os.environ, tmp_path / "log")
    part = Child("part", command, rng=random.Random(7), say=print, changed=lambda: None)
    with pytest.raises(FileNotFoundError):
        await part.start()
    await part.stop()
