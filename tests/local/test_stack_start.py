"""What a start says while it lasts, in virtual time: no part really runs."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from headworks.local import probe
from headworks.local.processes import Child
from headworks.local.stack import Stack
from headworks.policy.load import load

TINY = Path(__file__).parent / "tiny" / "headworks.toml"


async def _nothing(child: Child) -> None:
    """No process."""


def stack(folder: Path, said: list[str]) -> Stack:
    return Stack(
        load(TINY, {"HEADWORKS_STORE__URL": "valkey://127.0.0.1"}),
        TINY,
        pods=1,
        gateway="nginx",
        port=18_080,
        folder=folder / "state",
        keep=False,
        vendor_urls={},
        environ=os.environ,
        say=said.append,
        rng=random.Random(1),
    )


@pytest.mark.parametrize(
    ("takes", "lines"), [(2.0, []), (7.0, ["waiting for vendor-llm, pod-1 …", "waiting for gateway …"])]
)
async def test_a_start_that_takes_long_says_whom_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takes: float, lines: list[str]
) -> None:
    """Every three seconds; a quick start says nothing."""
    for part in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        part.chmod(0o711)  # nginx's workers must get through, and the stack insists on it

    async def answers(host: str, port: int, path: str = "") -> int:
        waited = asyncio.get_running_loop().time() - began
        return 200 if waited > (takes if port == 18_080 else takes / 2) else 0

    async def pongs(host: str, port: int) -> bool:
        return True

    monkeypatch.setattr(Child, "start", _nothing)
    monkeypatch.setattr(Child, "pid", 1)
    monkeypatch.setattr(probe, "port_in_use", lambda host, port: None)
    monkeypatch.setattr(probe, "free_ports", lambda host, count, rng: list(range(1, count + 1)))
    monkeypatch.setattr(probe, "valkey_answers", pongs)
    monkeypatch.setattr(probe, "http_status", answers)
    said: list[str] = []
    starting = stack(tmp_path, said)
    began = asyncio.get_running_loop().time()
    assert not starting.started
    await starting.start()
    assert starting.started
    await starting.stop()
    assert said == lines
