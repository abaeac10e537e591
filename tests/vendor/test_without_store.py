"""While the store is away a vendor's calls wait for it, unless the policy lets pods go on alone."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import httpx2
import pytest

from headworks.errors import QueueTimeout
from headworks.store.ladder import LadderStore
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Question, Report, Standing, StoreDown
from headworks.verdict import Verdict


class Away(MemoryStore):
    """A store that can go."""

    away = False

    async def ask(self, question: Question) -> Verdict:
        return await super().ask(question) if not self.away else await self._nobody()

    async def report(self, report: Report) -> Standing:
        return await super().report(report) if not self.away else await self._nobody()

    async def census(self, group: str, *, process: str, ttl: float) -> int:
        return await super().census(group, process=process, ttl=ttl) if not self.away else 0

    async def _nobody(self) -> Any:
        await asyncio.sleep(0.01)
        raise StoreDown("away")


@pytest.fixture
def store() -> Away:
    return Away()


def vendor_of(house: Any, store: Away, **settings: Any) -> Any:
    ladder = LadderStore(store, when_down="closed", rng=random.Random(1))
    return house.vendor(store=ladder, queue_timeout="5s", **settings)


async def call(vendor: Any) -> httpx2.Response:
    answer: httpx2.Response = await vendor.client.post("/chat", json={})
    return answer


async def test_calls_wait_for_a_store_that_comes_back(house: Any, store: Away) -> None:
    """A failover of four seconds: nobody is refused, nobody is sent meanwhile, all are sent after it."""
    vendor = vendor_of(house, store)
    assert (await call(vendor)).status_code == 200
    store.away = True
    waiting = [asyncio.create_task(call(vendor)) for _ in range(10)]
    await asyncio.sleep(3)
    assert len(house.server.arrivals) == 1
    store.away = False
    assert {(await one).status_code for one in waiting} == {200}
    await vendor.aclose()


async def test_who_waits_in_vain_hears_that_the_store_is_away(house: Any, store: Away) -> None:
    vendor, loop = vendor_of(house, store), asyncio.get_running_loop()
    assert (await call(vendor)).status_code == 200
    store.away, began = True, loop.time()
    with pytest.raises(QueueTimeout, match="shared store is away"):
        async with vendor.call():
            pass
    assert loop.time() - began <= 5.0
    assert len(house.server.arrivals) == 1
    await vendor.aclose()
