"""Every kind of server a store may have, and one way to open a store on a hand-moved clock."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from tests.store.servers import ClusterOfThree, RedisServer, Server, redis_binary

from headworks.store.memory import MemoryStore
from headworks.store.protocol import Store
from headworks.store.valkey import ValkeyStore


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("valkey"))
    yield server
    server.close()


@pytest.fixture
def server(shared_server: Server) -> Server:
    """The session's Valkey, emptied."""
    shared_server.client.flushall()
    return shared_server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A Valkey that a test may freeze and kill."""
    server = Server(tmp_path)
    yield server
    server.close()


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    binary = redis_binary()
    if binary is None:
        missing = "redis-server ≥ 7 is not installed; scripts/venv dev installs it when run as root"
        assert os.getuid() != 0, missing
        pytest.skip(missing)
    server = RedisServer(tmp_path_factory.mktemp("redis"), binary)
    yield server
    server.close()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """The session's Redis 7 with TLS and ACL, emptied."""
    shared_redis.client.flushall()
    return shared_redis


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterOfThree]:
    cluster = ClusterOfThree(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(shared_cluster: ClusterOfThree) -> ClusterOfThree:
    """The session's cluster of three, emptied."""
    shared_cluster.flush()
    return shared_cluster


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

BACKENDS = {"valkey": "server", "redis": "redis_server", "cluster": "cluster"}
"""The fixture of every backend but memory; each has a url."""


@pytest.fixture(params=["memory", *BACKENDS])
def opener(request: pytest.FixtureRequest) -> Opener:
    """Opens an empty store that goes by the given clock, over every backend in turn."""
    url = request.getfixturevalue(BACKENDS[request.param]).url if request.param in BACKENDS else ""

    @contextlib.asynccontextmanager
    async def opened(clock: Clock) -> AsyncIterator[Store]:
        store = ValkeyStore(url, clock=clock) if url else MemoryStore(clock)
        try:
            yield store
        finally:
            await store.aclose()

    return opened
