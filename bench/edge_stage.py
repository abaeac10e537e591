"""A real gateway between clients on many loopback addresses and pods in this process."""

from __future__ import annotations

import asyncio
import random
import re
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.stage import POLICY, Missing
from headworks.gateway.shares import Address
from headworks.local.gateways import GATEWAYS, nginx_binary
from headworks.local.parts import LOOPBACK
from headworks.local.probe import free_ports, http_status, wait_until
from headworks.policy.load import load

Cut = Callable[[dict[str, str]], dict[str, str]]
"""Takes a protection out of the rendered files: for controls."""
UP = 10.0


class Pod:
    """Answers every request with its name, and `/ready` as it is told."""

    def __init__(self, name: str, port: int) -> None:
        self.name, self.address = name, Address(LOOPBACK, port)
        self.ready = True
        self.last = 0.0
        """Loop time of the last request."""
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
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = re.search(rb"(?i)content-length: *(\d+)", head)
                    await reader.readexactly(int(length[1]) if length else 0)
                    probe = b" /ready " in head.partition(b"\r\n")[0]
                    if not probe:
                        self.last = asyncio.get_running_loop().time()
                    status = b"503 Busy" if probe and not self.ready else b"200 OK"
                    writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\nok")
        finally:
            self._open.discard(writer)
            writer.close()


@dataclass
class Edge:
    """A running gateway."""

    port: int
    pods: list[Pod]
    clients: list[Client] = field(default_factory=list)

    async def client(self, address: str = LOOPBACK) -> Client:
        """A client at that address, closed with the gateway."""
        self.clients.append(Client(self.port, address))
        return await self.clients[-1].open()

    def close(self) -> None:
        for client in self.clients:
            client.close()


class Client:
    """One keep-alive connection from one address; opened anew when it was closed."""

    def __init__(self, port: int, address: str) -> None:
        self._port, self._address = port, address
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> Client:
        where = (self._address, 0)
        self._reader, self._writer = await asyncio.open_connection(
            LOOPBACK, self._port, local_addr=where
        )
        return self

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    async def ask(self, method: str = "GET", body: bytes = b"") -> int:
        """The status of one request; 0 when the connection broke under it."""
        head = f"{method} /x HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            if self._writer is None or self._writer.is_closing() or self._reader.at_eof():  # type: ignore[union-attr]
                await self.open()
            assert self._reader is not None
            assert self._writer is not None
            self._writer.write(head.encode() + body)
            answer = await self._reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: *(\d+)", answer)
            if length is None:
                await self._reader.readuntil(b"0\r\n\r\n")
            else:
                await self._reader.readexactly(int(length[1]))
            if re.search(rb"(?i)connection: *close", answer):
                self.close()
            return int(answer.split(b" ", 2)[1])
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 0


@asynccontextmanager
async def gateway(
    product: str, *, pods: int = 1, settings: Mapping[str, str] | None = None, cut: Cut | None = None
) -> AsyncIterator[Edge]:
    """The shipped policy's gateway, with those settings of `[gateway]`, in front of so many pods."""
    environ = {f"HEADWORKS_GATEWAY__{name.upper()}": value for name, value in (settings or {}).items()}
    policy = load(POLICY, environ)
    made = GATEWAYS[product]

    def files(folder: Path, edge: Edge) -> list[str]:
        there = [pod.address for pod in edge.pods]
        rendered = made.render(policy, there, folder, edge.port, LOOPBACK)
        for name, text in (cut(rendered) if cut else rendered).items():
            (folder / name).write_text(text, encoding="utf-8")
        return list(made.argv(made.find(), folder))

    async with _running(files, pods, made.health) as edge:
        yield edge


@asynccontextmanager
async def plain_nginx(
    conf: Callable[[int, list[Address]], str], *, pods: int = 1
) -> AsyncIterator[Edge]:
    """An nginx with a configuration of its own: `conf(port, pods)`."""

    def files(folder: Path, edge: Edge) -> list[str]:
        text = conf(edge.port, [pod.address for pod in edge.pods])
        (folder / "nginx.conf").write_text(text, encoding="utf-8")
        return [str(nginx_binary()), "-p", f"{folder}/", "-c", "nginx.conf", "-e", "stderr"]

    async with _running(files, pods, "/x") as edge:
        yield edge


@asynccontextmanager
async def _running(
    files: Callable[[Path, Edge], list[str]], count: int, health: str
) -> AsyncIterator[Edge]:
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(_passable_folder())
        port, *ports = free_ports(LOOPBACK, count + 1, random.Random())
        edge = Edge(port, [Pod(f"pod-{n}", p) for n, p in enumerate(ports)])
        for pod in edge.pods:
            await pod.start()
            stack.callback(pod.kill)
        stack.callback(edge.close)
        silent = asyncio.subprocess.DEVNULL
        argv = files(folder, edge)
        process = await asyncio.create_subprocess_exec(*argv, stdout=silent, stderr=silent)
        stack.push_async_callback(_end, process)

        async def up() -> bool:
            return await http_status(LOOPBACK, port, health) == 200

        if not await wait_until(up, timeout=UP):
            raise Missing("the gateway did not start")
        yield edge


@contextmanager
def _passable_folder() -> Iterator[Path]:
    """nginx's workers run as nobody, who must get through."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    await process.wait()


async def paced(client: Client, rate: float, seconds: float, phase: float = 0.0) -> Counter[int]:
    """Ask at an even pace and count the statuses; who is behind hurries, so that all are asked."""
    loop, seen = asyncio.get_running_loop(), Counter[int]()
    began = loop.time()
    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, began + (number + phase) / rate - loop.time()))
        seen[await client.ask()] += 1
    return seen
