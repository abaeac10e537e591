"""Times that pass: a pod that is late gives its booking back, on every event loop there is."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import httpx2
import pytest
import uvloop
from tests.vendor.conftest import House

from headworks.testing.loop import VirtualTimeLoop
from headworks.vendor.alarm import Alarm


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_an_alarm_rings_once_at_its_earliest_time_on_every_loop(loop_factory: Any) -> None:
    """Delays of nothing and of less than a millisecond included, which uvloop treats otherwise."""

    async def main() -> int:
        rang: list[float] = []
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def ring() -> None:
            rang.append(loop.time())
            done.set()

        alarm = Alarm(ring)
        for delay in (0.05, -1.0, 0.0, 0.0003):
            alarm.set(loop.time() + delay)
        await done.wait()
        alarm.set(loop.time() + 60)
        alarm.cancel()
        return len(rang)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(main()) == 1


def test_calls_flow_on_uvloop() -> None:
    """The dispatcher's short timers work there too; every call is answered."""

    async def main() -> list[int]:
        house = House()
        vendor = house.vendor(quota=["60000/min"], slots=5, expected_latency="10ms")
        answers = await asyncio.gather(*(vendor.client.post("/x", json={}) for _ in range(50)))
        await vendor.aclose()
        return [answer.status_code for answer in answers]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == [200] * 50


async def test_an_answer_that_took_too_long_books_nothing_that_is_sent(house: Any) -> None:
    """The store's decision may be anywhere in a long round trip: its booking is not to be trusted."""
    house.store.round_trip = 0.4
    vendor = house.vendor(jitter="50ms", queue_timeout="3s", profile="openai")
    answer = await vendor.client.post("/x", json={})
    assert answer.status_code == 503
    assert not house.server.arrivals
    assert vendor.statistics().late >= 1
    house.store.round_trip = 0.01
    await asyncio.sleep(3)
    assert (await vendor.client.post("/x", json={})).status_code == 200


async def test_a_pod_that_slept_through_its_booking_gives_it_back(house: Any) -> None:
    """A loop that stands still while bookings fall due does not send them in a bunch afterwards."""
    vendor = house.vendor(jitter="20ms", quota=["1200/min"], queue_timeout="30s")
    calls = [asyncio.create_task(vendor.client.post("/x", json={})) for _ in range(20)]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.advance(0.3)  # somebody computes and lets nobody else run
    await asyncio.gather(*calls)
    arrivals = house.server.arrivals
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    assert vendor.statistics().late >= 1
    assert min(gaps) >= 0.05 - 0.02
    await vendor.aclose()


async def test_a_cool_down_is_not_shown_as_an_open_breaker(house: Any) -> None:
    async def busy(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(429, headers={"retry-after": "20"}, request=request)

    house.server.answer = busy
    vendor = house.vendor()
    await vendor.client.post("/x", json={})
    await house.reaper.drain(1)
    refused = await vendor.client.post("/x", json={})
    assert "asked for a pause" in refused.json()["detail"]


async def test_a_call_whose_connection_took_too_long_is_not_written(house: Any) -> None:
    """The last moment at which it can be held back: it goes to the line again, and costs nothing."""

    class Connecting(httpx2.AsyncBaseTransport):
        connecting = 1.0

        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            await asyncio.sleep(self.connecting)
            self.connecting = 0.0
            await request.extensions["trace"]("http11.send_request_headers.started", {})
            return await plain.handle_async_request(request)

    plain = house.server
    house.server = Connecting()
    vendor = house.vendor()
    heard = []

    async def theirs(event: str, info: object) -> None:
        heard.append(event)

    answer = await vendor.client.post("/x", json={}, extensions={"trace": theirs})
    assert answer.status_code == 200
    assert len(plain.arrivals) == 1
    assert len(house.store.asked) == 2
    assert heard == ["http11.send_request_headers.started"], "and the caller's own trace is told"
    await house.reaper.drain(1)
    assert vendor.statistics().in_flight == 0
