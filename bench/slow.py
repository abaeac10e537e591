"""Clients that are slow on purpose, at the gateway and straight at a pod, beside one who is not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.claims import Claim, Control, Figure
from bench.pods import Answers, Pod, ask, many_files, memory_of, plain, protected, served
from bench.stage import Stack, Stage
from headworks.local import probe
from headworks.local.parts import LOOPBACK

SILENT, HEADS, BODIES, UNREAD = 1000, 1000, 200, 200
"""Clients that connect and never send · drip a head · drip a body · never read their answer."""
FILES = 8192
STALL = 2.0
"""`admission.write_stall` of the pod: after so long, a client that does not read is cut off."""
GROWN = 96.0
"""MiB by which a process may grow for all of them. Each of 200 answers has 64."""
POLITE = "127.0.9.9"
"""The polite client's address at the gateway; the others have sixty of their own."""


async def slow_clients(stage: Stage) -> Claim:
    """All kinds of slowness, the polite client, the probes, and what it costs in memory."""
    many_files(FILES)
    stack = await stage.shipped()
    edge = await _at_the_gateway(stack, 8.0 if stage.quick else 14.0)
    async with protected(HEADWORKS_ADMISSION__MAX_IN_FLIGHT=str(UNREAD + 50)) as pod:
        ours = await _never_reading(pod)
    async with plain("--limit-concurrency", str(UNREAD)) as control:
        theirs = await _never_reading(control)
    async with (
        plain("--limit-concurrency", str(UNREAD)) as control,
        _crowd(control.port, SILENT, _nothing),
    ):
        crowded = await served(f"http://{LOOPBACK}:{control.port}/quick", LOOPBACK, 2.0)
    alone = "limit_concurrency alone"
    return Claim(
        "slow-clients",
        "2,200 slow clients at the gateway, and 200 at a pod that never read their answer: a polite "
        "client is served throughout, probes are answered, memory stays bounded",
        (
            Figure(
                "gateway: polite client, share served",
                edge.polite,
                ">=",
                0.99,
                Control(f"clients that never send, {alone}", crowded),
            ),
            Figure("gateway: probes of a pod that failed", edge.probes.failed, "==", 0),
            Figure("gateway: MiB by which pods and nginx grew", edge.grown, "<=", GROWN),
            Figure(
                "pod: polite client, share served",
                ours.polite,
                ">=",
                0.99,
                Control(alone, theirs.polite),
            ),
            Figure(
                "pod: probes that failed",
                ours.probes.failed,
                "==",
                0,
                Control(alone, theirs.probes.failed),
            ),
            Figure("pod: MiB by which it grew", ours.grown, "<=", GROWN),
            Figure(
                "pod: still connected, having read nothing",
                ours.left,
                "==",
                0,
                Control(alone, theirs.left),
            ),
        ),
        {
            "MiB before": {"pods and nginx": edge.before, "pod": ours.before, "control": theirs.before},
            "MiB grown": {"pods and nginx": edge.grown, "pod": ours.grown, "control": theirs.grown},
            "probes p99, milliseconds": {"gateway": edge.probes.p99_ms, "pod": ours.probes.p99_ms},
        },
    )


@dataclass(frozen=True, slots=True)
class Siege:
    """What a crowd of slow clients did.

    polite  the part of the polite client's requests that was served
    before  MiB of resident memory, and by how many it
    grown   grew
    left    of the crowd, who is still connected at the end
    """

    polite: float
    probes: Answers
    before: float
    grown: float
    left: int = 0


async def _at_the_gateway(stack: Stack, seconds: float) -> Siege:
    """All kinds at once, for longer than the gateway's timeouts."""
    pods = stack.pods()
    pids = [part.pid or 0 for part in pods] + _workers(stack.part("gateway").pid or 0)
    management = int(pods[0].management.rpartition(":")[2])
    async with AsyncExitStack() as crowds:
        memory = await crowds.enter_async_context(memory_of(*pids))
        for count, behave in (SILENT, _nothing), (HEADS, _head), (BODIES, _body):
            await crowds.enter_async_context(_crowd(stack.port, count, behave))
        polite, probes = await asyncio.gather(
            served(f"{stack.url}/search?q=weir", POLITE, seconds, **{"X-API-Key": "enterprise-2"}),
            ask(management, "/health", seconds),
        )
        memory.look()
    return Siege(polite, probes, round(sum(memory.before.values()), 1), memory.grown)


def _workers(master: int) -> list[int]:
    """The processes that nginx's master has started."""
    children = Path(f"/proc/{master}/task/{master}/children").read_text(encoding="ascii")
    return [int(pid) for pid in children.split()]


async def _never_reading(pod: Pod) -> Siege:
    """Two hundred who ask for much and read nothing."""
    sockets, pid = pod.sockets, pod.process.pid

    async def let_go() -> bool:
        return pod.sockets <= sockets

    async with memory_of(pid) as memory, _crowd(pod.port, UNREAD, _unread):
        polite, probes = await asyncio.gather(
            served(f"http://{LOOPBACK}:{pod.port}/quick", LOOPBACK, 2 * STALL),
            ask(pod.management, "/health", 2 * STALL),
        )
        await probe.wait_until(let_go, timeout=4 * STALL)
        memory.look()
        left = max(0, pod.sockets - sockets)
    return Siege(polite, probes, memory.before[pid], memory.grown, left)


@asynccontextmanager
async def _crowd(
    port: int, count: int, behave: Callable[[socket.socket], Awaitable[None]]
) -> AsyncIterator[None]:
    """So many clients that behave like this, from sixty addresses; whoever is thrown out stays out."""
    loop = asyncio.get_running_loop()

    async def one(number: int) -> None:
        await asyncio.sleep(number / count / 2)
        with socket.socket() as client, suppress(OSError):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            client.bind((f"127.0.8.{1 + number % 60}", 0))
            await loop.sock_connect(client, (LOOPBACK, port))
            await behave(client)
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(one(number)) for number in range(count)]
    try:
        await asyncio.sleep(1.0)  # by now everybody is there
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _nothing(client: socket.socket) -> None:
    """Connect, and that was all."""


async def _head(client: socket.socket) -> None:
    await _drip(client, b"GET /quick HTTP/1.1\r\nHost: edge\r\nX-Slow: ")


async def _body(client: socket.socket) -> None:
    head = b"POST /chat HTTP/1.1\r\nHost: edge\r\nContent-Type: application/json\r\n"
    await _drip(client, head + b"Content-Length: 100000\r\n\r\n")


async def _unread(client: socket.socket) -> None:
    """Ask for much, and read none of it."""
    await asyncio.get_running_loop().sock_sendall(client, b"GET /large HTTP/1.1\r\nHost: pod\r\n\r\n")


async def _drip(client: socket.socket, begin: bytes) -> None:
    """A byte every half second, until the other side has had enough."""
    sending = asyncio.get_running_loop().sock_sendall
    await sending(client, begin)
    while True:
        await asyncio.sleep(0.5)
        await sending(client, b"x")
