"""What the whole pipeline adds to one uncontended call, in round trips of a trivial EVALSHA.

A bare httpx2 client, the same through the pipeline over memory and over a Valkey, and an EVALSHA of
`return 1` over redis-py, in turn, on one loop against one small server; medians of the same run.

    python -m bench.contract.cost [--calls N]      prints JSON
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import httpx2
import uvloop
from redis.asyncio import Redis

from bench.core.server import running
from headworks.cleanup import Reaper
from headworks.clock import OneLoop
from headworks.policy.profiles import profile_named
from headworks.policy.vendor_settings import VendorSettings
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Store
from headworks.store.valkey import ValkeyStore
from headworks.telemetry import Telemetry
from headworks.vendor import Vendor

ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 30\r\n\r\n"
    b'{"usage":{"total_tokens": 12}}'
)
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = head.partition(b"content-length:")[2].split(b"\r\n")[0]
            await reader.readexactly(int(length))
            writer.write(ANSWER)
    except asyncio.IncompleteReadError:
        writer.close()


def _vendor(base: str, store: Store) -> Vendor:
    settings = {"base_url": base, "quota": ["6000000/min"], "profile": "openai", "attempts": 1}
    return Vendor(
        "llm",
        VendorSettings.model_validate(settings),
        profile_named("openai"),
        store=store,
        telemetry=Telemetry(),
        reaper=Reaper(),
        home=OneLoop(),
        pod="pod",
        replicas=1,
        rng=random.Random(1),
        now=lambda: datetime.now(UTC),
    )


async def measure(url: str, calls: int) -> dict[str, float]:
    """Medians in microseconds, and what the pipeline adds over each store, in EVALSHAs."""
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    store, redis, bare = ValkeyStore(url), Redis.from_url(url), httpx2.AsyncClient(base_url=base)
    memory, valkey = _vendor(base, MemoryStore()), _vendor(base, store)
    sha = await redis.script_load("return 1")

    def through(client: httpx2.AsyncClient) -> Callable[[], Awaitable[Any]]:
        return lambda: client.post("/chat/completions", json=BODY)

    contestants: dict[str, Callable[[], Awaitable[Any]]] = {
        "bare": through(bare),
        "memory": through(memory.client),
        "valkey": through(valkey.client),
        "evalsha": lambda: redis.evalsha(sha, 0),
    }
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(calls + calls // 4):
        for name, call in contestants.items():
            began = time.perf_counter()
            await call()
            if number >= calls // 4:
                taken[name].append(time.perf_counter() - began)
    for client in (bare, memory, valkey, store, redis):
        await client.aclose()
    server.close()
    await asyncio.sleep(0.01)
    found = {name: statistics.median(times) * 1e6 for name, times in taken.items()}
    adds = {
        f"{name} adds, in EVALSHAs": (found[name] - found["bare"]) / found["evalsha"]
        for name in ("memory", "valkey")
    }
    return {name: round(value, 2) for name, value in (found | adds).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=2000)
    options = parser.parse_args()
    with running() as server:
        found = uvloop.run(measure(server.url, options.calls))
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
