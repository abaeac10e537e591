"""SIGTERM on a real server: the pod says that it leaves, serves on, and only then ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from tests.ports import free_port

from headworks.health import Termination

APP = """
import asyncio
from fastapi import FastAPI
from headworks import Headworks
from headworks.policy.load import parse

works = Headworks(parse({
    "schema": 1,
    "service": {"name": "svc"},
    "health": {"drain_delay": "DELAY", "drain_timeout": "60s"},
    "fairness": {"default_tier": "free", "tiers": {"free": {"rate": "1000/s"}}},
}, "test", {}))
app = works.protect(FastAPI())

@app.get("/hello")
async def hello():
    return "hello"

@app.get("/slow")
async def slow():
    await asyncio.sleep(4)
    return "slow"
"""


PATIENCE = 60.0
"""Seconds after which something has not happened."""


@asynccontextmanager
async def server(
    folder: Path, delay: str, *options: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A plain `uvicorn app:app`, ready; killed in the end if it has not ended."""
    (folder / "app.py").write_text(textwrap.dedent(APP.replace("DELAY", delay)))
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port), *options]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    url = f"http://127.0.0.1:{port}"
    try:
        await until(lambda: status(url + "/ready"), 200)
        yield process, url
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def status(url: str) -> int:
    """Status of one answer on a connection of its own; 0 when nobody listens."""
    async with httpx2.AsyncClient(timeout=PATIENCE, trust_env=False) as client:
        try:
            return (await client.get(url)).status_code
        except httpx2.TransportError:
            return 0


async def until(ask: Callable[[], Awaitable[int]], wanted: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while await ask() != wanted:  # noqa: ASYNC110  # another process has no event to wait for
            await asyncio.sleep(0.02)


@pytest.mark.real
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_pod_told_to_end_leaves_first_and_loses_nothing(tmp_path: Path, loop: str) -> None:
    """/ready is 503 while new connections are still served; what is in flight is answered."""
    async with server(tmp_path, "3s", "--loop", loop) as (process, url):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        process.send_signal(signal.SIGTERM)
        await until(lambda: status(url + "/ready"), 503)
        assert await status(url + "/hello") == 200, "still serving during the drain delay"
        assert await status(url + "/health") == 200
        await until(lambda: status(url + "/hello"), 0)
        async with asyncio.timeout(PATIENCE):
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            await process.wait()
        writer.close()
        assert process.returncode in (0, -signal.SIGTERM)


@pytest.mark.real
async def test_a_second_sigterm_is_passed_on_at_once(tmp_path: Path) -> None:
    """Who insists is not made to wait for the drain delay."""
    async with server(tmp_path, "10m") as (process, url):
        process.send_signal(signal.SIGTERM)
        await until(lambda: status(url + "/ready"), 503)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            await process.wait()


async def test_without_a_server_s_handler_nothing_is_done() -> None:
    """In tests and under other servers the signal stays what it was."""
    before = signal.getsignal(signal.SIGTERM)
    termination = Termination(1.0, 9.0, leaving=lambda: None, over=lambda: None)
    assert not termination.install()
    termination.remove()
    assert signal.getsignal(signal.SIGTERM) is before


class Server:
    """As much of uvicorn's server as matters."""

    def __init__(self) -> None:
        self.should_exit = False
        self.told_at: list[float] = []

    def handle_exit(self, signum: int, frame: object) -> None:
        self.told_at.append(asyncio.get_running_loop().time())


async def test_the_handler_is_wrapped_delayed_and_put_back() -> None:
    """The server hears of the signal after the delay, at once when there is none."""
    before = signal.getsignal(signal.SIGTERM)
    server, left, over = Server(), [], []
    signal.signal(signal.SIGTERM, server.handle_exit)
    try:
        termination = Termination(5.0, 9.0, leaving=lambda: left.append(1), over=lambda: over.append(1))
        assert termination.install()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(4.9)
        assert (left, server.told_at) == ([1], [])
        await asyncio.sleep(0.2)
        assert server.told_at == [pytest.approx(1005.0)]
        await asyncio.sleep(8.7)
        assert over == []
        await asyncio.sleep(0.3)
        assert over == [1]
        termination.remove()
        assert signal.getsignal(signal.SIGTERM) == server.handle_exit
    finally:
        signal.signal(signal.SIGTERM, before)
