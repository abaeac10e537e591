"""Places held by lease: a killed holder's comes back within its time, a late one is told apart."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import Any

import pytest

from headworks.store.limiter import Places
from headworks.store.memory import MemoryStore
from headworks.store.protocol import StoreDown
from headworks.store.valkey import ValkeyStore

TTL = 1.5

HOLDER = """
import asyncio, sys
from headworks.store.limiter import Places
from headworks.store.valkey import ValkeyStore

async def main():
    store = ValkeyStore(sys.argv[1])
    async with Places(store, "job", 1, holder="first", ttl=float(sys.argv[2])).hold() as place:
        print(place.fence, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def _holder(url: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, url, str(TTL)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.real
async def test_a_killed_holders_place_is_free_within_its_ttl(server: Any) -> None:
    """It outlives its ttl while the holder lives, who renews it; and the next one's fence is greater.
    Who asks before the lease is over, by the server's clock, is refused, and nobody after it."""

    def left() -> float:
        ends, _ = server.client.hget("hw1:l:job", "first/1").split(b":")
        now, micros = server.client.time()
        return float(int(ends) / 1e6 - now - micros / 1e6)

    holder = _holder(server.url)
    assert holder.stdout is not None
    fence = int(holder.stdout.readline())
    store = ValkeyStore(server.url)
    places = Places(store, "job", 1, holder="second", ttl=TTL)
    ends = time.monotonic() + 1.5 * TTL
    while time.monotonic() < ends:
        async with places.hold() as place:
            assert place is None
        await asyncio.sleep(0.1)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert left() <= TTL
    while True:
        over = left() <= 0
        async with places.hold() as place:
            if place is not None:
                assert place.fence > fence
                break
        assert not over
        await asyncio.sleep(0.02)
    await places.aclose()
    await store.aclose()


class Shaky(MemoryStore):
    """Fails while `away`."""

    away = False

    async def lease(self, key: str, *, holder: str, limit: int, ttl: float) -> int:
        if self.away:
            raise StoreDown("away")
        return await super().lease(key, holder=holder, limit=limit, ttl=ttl)


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_a_lease_outlasts_a_store_that_is_away_for_less_than_its_time() -> None:
    store = Shaky()
    places = Places(store, "job", 1, holder="a", ttl=15)
    async with places.hold() as place:
        assert place is not None
        await asyncio.sleep(6)
        store.away = True
        await asyncio.sleep(9)
        assert place.held
        store.away = False
        await asyncio.sleep(60)
        assert place.held
        assert not place.lost.is_set()
    await places.aclose()


async def test_a_holder_learns_that_it_has_lost_its_place_before_another_can_have_it() -> None:
    store = Shaky()
    places = Places(store, "job", 1, holder="a", ttl=15)
    began = now()
    async with places.hold() as place:
        assert place is not None
        store.away = True
        await place.lost.wait()
        assert now() - began <= 15
        assert not place.held
        store.away = False
        async with Places(store, "job", 1, holder="b").hold() as other:
            assert other is not None
            assert other.fence > place.fence
    await places.aclose()
