"""Where the claims are acted out: real stacks in processes of their own, and clients on loopback.

A stage ends every stack it raised, by process id, whatever happens: a failed claim, Ctrl-C, SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from headworks.local import probe, status
from headworks.local.parts import LOOPBACK
from headworks.local.status import Part, Status

ROOT = Path(__file__).parents[1]
POLICY = ROOT / "examples" / "service" / "headworks.toml"
START, END = 90.0, 20.0
"""Seconds that a stack may take to be ready, and to end."""
ANSWER = 70.0
"""Seconds one request may take."""


class Missing(Exception):
    """A figure cannot be taken; the message says why."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A running `headworks up`.

    ready_after  seconds from its start to its `ready` line
    before       status at its address before it was started; 0: nobody answers
    """

    process: asyncio.subprocess.Process
    port: int
    said: Path
    before: int
    began: float
    ready_after: float

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def status(self) -> Status:
        """What runs where; `Missing` when the stack does not say."""
        found = status.read(self.port)
        if found is None:
            raise Missing(f"the stack on port {self.port} does not say what runs")
        return found

    def part(self, name: str) -> Part:
        return next(part for part in self.status().parts if part.name == name)

    def pods(self) -> list[Part]:
        return [part for part in self.status().parts if part.kind == "pod"]

    async def degraded(self) -> int:
        """How many pods are ready although their store is not up."""
        found = 0
        for pod in self.pods():
            async with client(base_url=pod.url) as asking:
                answer = await asking.get("/ready")
            found += answer.status_code == 200 and answer.json()["store"]["state"] != "up"
        return found

    async def vendor_stats(self, name: str) -> dict[str, Any]:
        """The fake vendor's own count."""
        base = httpx2.URL(self.status().vendors[name])
        async with client() as asking:
            stats: dict[str, Any] = (await asking.get(base.copy_with(path="/stats"))).json()
            return stats


class Stage:
    """What all claims share: the shipped stack, raised when it is first needed, and the options.

    seed   of everything drawn by chance here
    quick  fewer seconds and fewer cells; the same claims
    """

    def __init__(self, *, seed: int, quick: bool, say: Callable[[str], None]) -> None:
        self.seed, self.quick, self.say = seed, quick, say
        self._raised = AsyncExitStack()
        self._shipped: Stack | None = None

    async def __aenter__(self) -> Stage:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._raised.aclose()

    async def shipped(self) -> Stack:
        """The shipped policy, as `make up` runs it."""
        if self._shipped is None:
            self._shipped = await self._raised.enter_async_context(running())
        return self._shipped


@asynccontextmanager
async def running(
    *options: str, environ: Mapping[str, str] | None = None, policy: Path = POLICY
) -> AsyncIterator[Stack]:
    """`headworks up` on a free port, ended with the context; default: with the shipped policy."""
    port = probe.free_ports(LOOPBACK, 1, random.Random())[0]
    said = status.state_folder(port).with_suffix(".said")
    before = await probe.http_status(LOOPBACK, port, "/")
    command = ("up", "--policy", str(policy), "--port", str(port), *options)
    loop = asyncio.get_running_loop()
    began = loop.time()
    process = await headworks(*command, errors=said, environ=environ)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START):
            line = await process.stdout.readline()
        if line.strip() != f"ready http://{LOOPBACK}:{port}".encode():
            raise Missing(f"the stack did not start: {said.read_text(encoding='utf-8').strip()}")
        yield Stack(process, port, said, before, began, loop.time() - began)
    finally:
        await _ended(process, port)
        said.unlink(missing_ok=True)


async def headworks(
    *arguments: str, errors: Path | None = None, environ: Mapping[str, str] | None = None
) -> asyncio.subprocess.Process:
    """A `headworks` command in a session of its own, its stdout a pipe."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HEADWORKS_")}
    with (errors or Path(os.devnull)).open("wb") as sink:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "headworks", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=sink,
            env={**inherited, **(environ or {})},
            cwd=ROOT,
            start_new_session=True,
        )


async def _ended(process: asyncio.subprocess.Process, port: int) -> None:
    """Ask it to end; kill it, and what it says it runs, when it does not."""
    found = status.read(port)
    await stop(process)
    for part in found.parts if found is not None and status.read(port) is not None else ():
        if part.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(part.pid, signal.SIGKILL)


async def stop(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, then SIGKILL after `END` seconds; returns when the process is gone."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(END):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def client(source: str = LOOPBACK, **arguments: Any) -> httpx2.AsyncClient:
    """A plain HTTP client whose connections come from `source`, a loopback address."""
    transport = httpx2.AsyncHTTPTransport(local_address=source, trust_env=False)
    return httpx2.AsyncClient(transport=transport, timeout=ANSWER, trust_env=False, **arguments)


async def chat(
    asking: httpx2.AsyncClient, key: str | None, message: str = "hi", **headers: str
) -> httpx2.Response:
    """One `/chat` call."""
    named = headers if key is None else {"X-API-Key": key, **headers}
    return await asking.post("/chat", json={"message": message}, headers=named)


async def few_at_once(work: list[Coroutine[Any, Any, httpx2.Response]]) -> list[httpx2.Response]:
    """All answers, in order, six requests under way at most: a browser, not a flood."""
    places = asyncio.Semaphore(6)

    async def one(request: Coroutine[Any, Any, httpx2.Response]) -> httpx2.Response:
        async with places:
            return await request

    return list(await asyncio.gather(*(one(request) for request in work)))
