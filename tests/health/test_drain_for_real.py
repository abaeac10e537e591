"""A pod told to end while it streams, calls and cleans up: a real `uvicorn` and a real `serve`."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.health.test_termination import PATIENCE, status, until
from tests.ports import free_port

pytestmark = pytest.mark.real

DELAY, DRAIN = 2.0, 2.0
POLICY = """
schema = 1
[service]
name = "svc"
app = "app:app"
sla = "2s"
[health]
drain_delay = "DELAYs"
drain_timeout = "DRAINs"
[fairness]
default_tier = "free"
tiers.free = { rate = "1000/s" }
"""
APP = """
import asyncio
from pathlib import Path
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse
from headworks import Headworks
from headworks.current import current

HERE = Path(__file__).parent
works = Headworks.load(HERE / "headworks.toml")
app = works.protect(FastAPI())

def note(what):
    with (HERE / "notes").open("a") as notes:
        notes.write(what + "\\n")

@app.get("/hello")
async def hello():
    return "hello"

@app.get("/events")
@works.lasting(None)
async def events():
    async def endless():
        note("begun")
        try:
            while True:
                yield b"data: on\\n\\n"
                await asyncio.sleep(0.05)
        finally:
            note("stream closed")
    return StreamingResponse(endless(), media_type="text/event-stream")

@app.get("/leases")
async def leases():
    async def give_back():
        await asyncio.sleep(0.3)
        note("lease returned")
    note("begun")
    current().closers.add(give_back)
    await asyncio.sleep(1.2)
    return "done"

@app.get("/stubborn")
async def stubborn():
    async def later():
        note("begun")
        try:
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0.7)
            note("cleaned up")
    return PlainTextResponse("ok", background=BackgroundTask(later))
"""


@dataclass
class Pod:
    """A pod in a process of its own."""

    process: asyncio.subprocess.Process
    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def notes(self) -> list[str]:
        found = self.folder / "notes"
        return found.read_text().split("\n")[:-1] if found.exists() else []

    async def ended(self) -> int:
        """Its exit code."""
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()


@asynccontextmanager
async def pod(
    folder: Path, how: str, *options: str, delay: float = DELAY, drain: float = DRAIN
) -> AsyncIterator[Pod]:
    policy = POLICY.replace("DELAY", str(delay)).replace("DRAIN", str(drain))
    (folder / "app.py").write_text(APP)
    (folder / "headworks.toml").write_text(policy)
    port = free_port()
    command = {
        "uvicorn": ("uvicorn", "app:app"),
        "serve": (
            "headworks",
            "serve",
            "--policy",
            str(folder / "headworks.toml"),
            "--host",
            "127.0.0.1",
        ),
    }[how]
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *command, "--port", str(port), *options),
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        running = Pod(process, port, folder)
        await until(lambda: status(running.url + "/ready"), 200)
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def begun(pod: Pod, path: str) -> asyncio.Task[bytes]:
    """A request on a connection of its own that its handler has met: all that will be answered."""
    before = pod.notes().count("begun")
    reader, writer = await asyncio.open_connection("127.0.0.1", pod.port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())

    async def answer() -> bytes:
        try:
            return await reader.read()
        finally:
            writer.close()

    task = asyncio.create_task(answer())
    async with asyncio.timeout(PATIENCE):
        while pod.notes().count("begun") == before:  # noqa: ASYNC110  # another process has no event
            await asyncio.sleep(0.02)
    return task


def last_event(answer: bytes) -> dict[str, object]:
    """The problem in a stream's last event; the chunked answer has come to its proper end."""
    assert answer.endswith(b"\r\n0\r\n\r\n"), answer[-200:]
    event = answer.rpartition(b"event: error\ndata: ")[2]
    found: dict[str, object] = json.loads(event.partition(b"\n")[0])
    return found


@pytest.mark.parametrize(("how", "code"), [("uvicorn", -signal.SIGTERM), ("serve", 0)])
async def test_an_endless_stream_ends_with_its_event_and_the_pod_in_time(
    tmp_path: Path, how: str, code: int
) -> None:
    """At the end of the drain, not before: the listener is closed, others have been answered."""
    async with pod(tmp_path, how) as running:
        stream = await begun(running, "/events")
        told = asyncio.get_running_loop().time()
        running.process.send_signal(signal.SIGTERM)
        await until(lambda: status(running.url + "/ready"), 503)
        assert await status(running.url + "/hello") == 200
        async with asyncio.timeout(PATIENCE):
            assert last_event(await stream)["reason"] == "pod-leaving"
        assert asyncio.get_running_loop().time() - told >= DELAY + DRAIN - 0.1
        assert await running.ended() == code
        assert running.notes() == ["begun", "stream closed"]
        assert "Traceback" not in (tmp_path / "log").read_text()


async def test_sigint_is_not_made_to_wait_for_the_delay(tmp_path: Path) -> None:
    async with pod(tmp_path, "serve", delay=600.0) as running:
        running.process.send_signal(signal.SIGINT)
        await until(lambda: status(running.url + "/hello"), 0)
        assert await running.ended() == 0


async def test_a_server_s_own_shorter_patience_is_kept_to(tmp_path: Path) -> None:
    """The last event goes out before the server cuts the stream off."""
    shorter = ("--timeout-graceful-shutdown", "2")
    async with pod(tmp_path, "uvicorn", *shorter, delay=0.1, drain=600.0) as running:
        stream = await begun(running, "/events")
        running.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE):
            assert last_event(await stream)["reason"] == "pod-leaving"
        assert await running.ended() == -signal.SIGTERM


@pytest.mark.parametrize("how", ["uvicorn", "serve"])
async def test_requests_in_flight_and_what_they_clean_up_are_both_waited_for(
    tmp_path: Path, how: str
) -> None:
    """A request that ends while the pod drains hands its leases over only then; all come back. What
    never ends is cancelled by the server, which waits for none of its cleaning up: we do."""
    async with pod(tmp_path, how, delay=0.6) as running:
        stubborn = await begun(running, "/stubborn")
        asked = [await begun(running, "/leases") for _ in range(3)]
        running.process.send_signal(signal.SIGTERM)
        for answer in await asyncio.gather(*asked):
            assert answer.startswith(b"HTTP/1.1 200")
        await running.ended()
        notes = sorted(note for note in running.notes() if note != "begun")
        assert notes == ["cleaned up"] + ["lease returned"] * 3
        assert (await stubborn).startswith(b"HTTP/1.1 200")


async def test_kept_connections_are_told_to_go_elsewhere_while_the_pod_still_serves(
    tmp_path: Path,
) -> None:
    """A gateway's pool empties before the listener closes: no request meets a closing connection."""
    async with pod(tmp_path, "uvicorn", delay=600.0) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        request = b"GET /hello HTTP/1.1\r\nhost: x\r\n\r\n"
        writer.write(request)
        assert b"connection: close" not in await reader.readuntil(b'"hello"')
        running.process.send_signal(signal.SIGTERM)
        await until(lambda: status(running.url + "/ready"), 503)
        writer.write(request)
        assert b"connection: close" in await reader.read()
        writer.close()
