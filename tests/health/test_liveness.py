"""A pod that is full is alive: no probe fails, on either port, whatever it is full of."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from bench.pods import ask, plain, protected

from headworks.local.parts import LOOPBACK
from headworks.local.probe import http_status

pytestmark = pytest.mark.real

PLACES = 20


async def fill(port: int, calls: AsyncExitStack) -> None:
    """Every place taken by a call of sixty seconds: whoever comes next is refused."""
    async with asyncio.timeout(30):
        while await http_status(LOOPBACK, port, "/quick") != 503:
            for _ in range(PLACES):
                _, writer = await asyncio.open_connection(LOOPBACK, port)
                calls.callback(writer.close)
                writer.write(b"GET /long HTTP/1.1\r\nHost: pod\r\n\r\n")


async def test_a_pod_full_of_long_calls_is_never_failed_by_liveness() -> None:
    """The same handlers under the server's own limit fail every probe: that pod would be killed."""
    limited = plain("--limit-concurrency", str(PLACES))
    async with protected() as ours, limited as control, AsyncExitStack() as calls:
        for pod in (ours, control):
            await fill(pod.port, calls)
        for port in (ours.management, ours.port):
            for path in ("/health", "/ready"):
                answers = await ask(port, path, 0.5)
                assert (answers.failed, bool(answers.statuses)) == (0, True)
        assert set((await ask(control.port, "/health", 0.5)).statuses) == {503}
