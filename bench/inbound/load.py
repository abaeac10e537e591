"""Requests as fast as one server answers them, on connections that are kept.

The client parses no more of an answer than its status and its length: it shares two cores with what it
measures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from statistics import quantiles
from typing import Any

LENGTH = b"content-length: "


@dataclass(frozen=True, slots=True)
class Slice:
    """rate: answers per second · p50_us, p99_us: their latencies · statuses: how many of each"""

    rate: float
    p50_us: float
    p99_us: float
    statuses: dict[int, int]


class _Connection(asyncio.Protocol):
    """One request after another; `stopped` ends it with the answer that is under way."""

    def __init__(self, requests: Iterable[bytes]) -> None:
        self._requests, self._rest = iter(requests), b""
        self.latencies: list[float] = []
        self.statuses: dict[int, int] = {}
        self.stopped = False
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        request = None if self.stopped else next(self._requests, None)
        if request is None:
            self.stopped = True
            self._transport.close()
            return
        self._sent = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        rest = self._rest = self._rest + data if self._rest else data
        head = rest.find(b"\r\n\r\n")
        if head < 0:
            return
        place = rest.find(LENGTH, 0, head) + len(LENGTH)
        if len(rest) < head + 4 + int(rest[place : rest.index(b"\r", place)]):
            return
        self._rest = b""
        self.latencies.append(time.perf_counter() - self._sent)
        status = int(rest[9:12])
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over.done():
            if self.stopped:
                self.over.set_result(None)
            else:
                self.over.set_exception(error or ConnectionError("the server closed a connection"))


def request(path: str, header: str, key: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: bench\r\n{header}: {key}\r\n\r\n".encode()


async def driven(port: int, requests: Sequence[Sequence[bytes]], seconds: float | None) -> Slice:
    """One connection per list of requests, each sent in turn; for so many seconds again and again, or,
    with None, once."""
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    connections = [
        (await loop.create_connection(partial(_Connection, sent), "127.0.0.1", port))[1]
        for sent in (requests if seconds is None else map(cycle, requests))
    ]
    if seconds is not None:
        await asyncio.sleep(seconds)
        for connection in connections:
            connection.stopped = True
    await asyncio.gather(*(connection.over for connection in connections))
    took = time.perf_counter() - began
    latencies = [latency for connection in connections for latency in connection.latencies]
    statuses: dict[int, int] = {}
    for connection in connections:
        for status, count in connection.statuses.items():
            statuses[status] = statuses.get(status, 0) + count
    cuts = quantiles(latencies, n=100)
    return Slice(len(latencies) / took, cuts[49] * 1e6, cuts[98] * 1e6, statuses)
