"""A real gateway with a rendered policy, in front of pods that live in the test's own event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.ports import free_port

from headworks.gateway.shares import Address
from headworks.local.gateways import GATEWAYS, Gateway
from headworks.local.parts import LOOPBACK
from headworks.local.probe import http_status, wait_until
from headworks.policy.load import parse
from headworks.policy.settings import Policy


class Pod:
    """A pod that says it is ready or not, records what it gets, and can be slow, broken or gone."""

    def __init__(self, name: str, port: int) -> None:
        self.name, self.address = name, Address(LOOPBACK, port)
        self.ready = True
        self.breaks = False
        self.gate, self.last = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.said_no = 0
        self.sent_after: list[int] = []
        """For each request that came after it had said no: how often it had said so."""
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, *self.address)

    def kill(self) -> None:
        """Gone at once: nobody listens, open connections are reset."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._answer(reader, writer):
                    pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)
        }
        await reader.readexactly(int(headers.get("content-length", 0)))
        if path == "/ready":
            self.said_no += not self.ready
            status = "200 OK" if self.ready else "503 Service Unavailable"
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
            return True
        self.requests.append((f"{method} {path}", headers))
        if self.said_no:
            self.sent_after.append(self.said_no)
        if self.breaks:
            return False
        if headers.get("upgrade") == "websocket":
            await self._echo(reader, writer)
            return False
        if path == "/stream":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
            writer.write(b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
            await self.gate.wait()
            writer.write(b"9\r\ndata: 2\n\n\r\n")
            await self.last.wait()
            writer.write(b"0\r\n\r\n")
            return True
        await self.gate.wait()
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(self.name)}\r\n\r\n{self.name}".encode())
        return True

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What a websocket is to a gateway: upgraded, then bytes both ways until one side ends."""
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n")
        writer.write(b"Connection: Upgrade\r\n\r\n")
        while said := await reader.read(1024):
            writer.write(said)


class Edge:
    """A running gateway: its address, its pods, and clients on many loopback addresses."""

    def __init__(self, product: Gateway, port: int, pods: list[Pod], stack: AsyncExitStack) -> None:
        self.product, self.port, self.pods, self._stack = product, port, pods, stack
        self._clients: dict[str, httpx2.AsyncClient] = {}
        self.folder, self.pid = Path(), 0

    def render(self, policy: Policy, pods: list[Pod] | None = None) -> None:
        """Write the gateway's files for this policy and these pods, or all."""
        addresses = [pod.address for pod in (self.pods if pods is None else pods)]
        self.product.write(policy, addresses, self.folder, self.port, LOOPBACK)

    def take_over(self, policy: Policy) -> None:
        """Let the running gateway take over another policy."""
        self.render(policy)
        self.product.take_over(self.pid)

    async def client(self, address: str = "127.0.0.9") -> httpx2.AsyncClient:
        """A client whose connections come from `address`."""
        if address not in self._clients:
            client = httpx2.AsyncClient(
                base_url=f"http://{LOOPBACK}:{self.port}",
                transport=httpx2.AsyncHTTPTransport(local_address=address),
                timeout=60,
            )
            self._clients[address] = await self._stack.enter_async_context(client)
        return self._clients[address]

    async def connect(self, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare connection from `address`, closed with the gateway."""
        streams = await asyncio.open_connection(LOOPBACK, self.port, local_addr=(address, 0))
        self._stack.callback(streams[1].close)
        return streams

    async def health(self) -> int:
        return await http_status(LOOPBACK, self.port, self.product.health)


OpenEdge = Callable[..., Any]


def policy_with(**gateway: object) -> Policy:
    """A policy with those gateway settings."""
    return parse(
        {
            "schema": 1,
            "service": {"name": "edge", "sla": "5s"},
            "gateway": gateway,
            "fairness": {"default_tier": "free", "tiers": {"free": {"rate": "10/min"}}},
        },
        environ={},
    )


@pytest.fixture(params=["nginx"])
def open_edge(request: pytest.FixtureRequest, tmp_path: Path) -> OpenEdge:
    """`async with open_edge(pods=2, per_ip_rate="10/s") as edge:` is a running gateway.

    Tests that hold for Envoy, too, say so: `@on_both`.
    """
    product = GATEWAYS[request.param]

    @asynccontextmanager
    async def opened(pods: int = 1, **gateway: object) -> AsyncIterator[Edge]:
        async with AsyncExitStack() as stack:
            port = free_port()
            running = [Pod(f"pod-{index}", free_port()) for index in range(pods)]
            for pod in running:
                await pod.start()
                stack.callback(pod.kill)
            edge = Edge(product, port, running, stack)
            await run(edge, tmp_path, policy_with(**gateway), stack)
            assert await wait_until(lambda: _is(edge.health, 200), timeout=60), "the gateway is not up"
            yield edge

    opened.product = product.name  # type: ignore[attr-defined]  # for tests whose bounds differ
    return opened


async def _is(ask: Callable[[], Any], wanted: int) -> bool:
    return bool(await ask() == wanted)


async def run(edge: Edge, folder: Path, policy: Policy, stack: AsyncExitStack) -> None:
    """Start the gateway in front of its pods; it ends with the stack."""
    # nginx's workers run as nobody, who must get through to the prefix folder.
    for part in (folder, folder.parent, folder.parent.parent):
        part.chmod(0o711)
    edge.folder = folder / "gateway"
    edge.render(policy)
    command = edge.product.command(edge.folder, os.environ, folder / "gateway.log")
    with command.log.open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command.argv, stdout=log, stderr=log)
    edge.pid = process.pid

    async def end() -> None:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()

    stack.push_async_callback(end)
