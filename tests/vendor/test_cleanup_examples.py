"""What may happen when a call's time is up or its caller is gone: the examples, with the real parts.

A handler records an SLA violation, releases what it holds and writes a final state, although it is
being cancelled meanwhile; and none of it holds anybody up, retries, or calls the vendor.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from headworks.cleanup import Reaper, shielded
from headworks.errors import CallTimeout, Refused
from headworks.vendor import REFUSED


class Book:
    """Somewhere else, over a network: takes a moment to be told, and may never answer."""

    def __init__(self, takes: float = 0.05) -> None:
        self.takes, self.lines = takes, list[str]()

    async def write(self, line: str) -> None:
        await asyncio.sleep(self.takes)
        self.lines.append(line)


async def call_with_cleanup(vendor: Any, book: Book, *, patience: float) -> int:
    """The example: a call under a time of its own, whose end is recorded whatever happens."""
    state = "unknown"
    try:
        async with asyncio.timeout(patience):
            status: int = (await vendor.client.post("/chat/completions", json={})).status_code
            state = "answered"
            return status
    except TimeoutError:
        state = "late"
        await shielded(book.write("SLA violated"), timeout=1.0)
        raise
    except asyncio.CancelledError:
        state = "cancelled"
        raise
    finally:
        await shielded(book.write(f"state: {state}"), timeout=1.0)


async def test_a_violation_is_recorded_and_the_slot_is_back_before_it_is(house: Any) -> None:
    house.server.latency = 100
    vendor, book = house.vendor(call_timeout="200s", timeouts={"read": "200s"}), Book()
    with pytest.raises(TimeoutError):
        await call_with_cleanup(vendor, book, patience=2)
    assert book.lines == ["SLA violated", "state: late"]
    assert vendor.statistics().in_flight == 0


@pytest.mark.parametrize("moments", [0.0, 0.02, 0.07])
async def test_recording_survives_a_cancellation_at_any_moment_of_it(house: Any, moments: float) -> None:
    """`asyncio.shield` loses the record when the task is cancelled a second time, or the loop stops."""
    house.server.latency = 100
    vendor, book = house.vendor(call_timeout="200s", timeouts={"read": "200s"}), Book()
    calling = asyncio.create_task(call_with_cleanup(vendor, book, patience=2))
    await asyncio.sleep(2.0 + moments + 0.001)
    calling.cancel()
    await asyncio.sleep(0.001)
    calling.cancel()
    await asyncio.wait((calling,))
    assert calling.cancelled()
    assert book.lines[0] == "SLA violated"
    assert book.lines[-1].startswith("state: ")
    assert vendor.statistics().in_flight == 0


async def test_the_source_of_the_loss_asyncios_own_shield(house: Any) -> None:
    """The control: under `asyncio.shield` the caller is gone before the record is written."""
    book = Book()

    async def lossy() -> None:
        try:
            async with asyncio.timeout(2):
                await asyncio.sleep(100)
        except TimeoutError:
            await asyncio.shield(book.write("SLA violated"))
            raise

    calling = asyncio.create_task(lossy())
    await asyncio.sleep(2.02)
    calling.cancel()
    await asyncio.wait((calling,))
    assert book.lines == [], "nobody waits for it any more; a loop that stops now loses it"


async def test_a_record_that_nobody_takes_holds_its_caller_for_a_bounded_time(house: Any) -> None:
    house.server.latency = 100
    vendor, book = house.vendor(call_timeout="200s", timeouts={"read": "200s"}), Book(takes=3600)
    start = asyncio.get_running_loop().time()
    with pytest.raises(TimeoutError):
        await call_with_cleanup(vendor, book, patience=2)
    assert asyncio.get_running_loop().time() - start <= 2 + 2 * 1.1
    assert vendor.statistics().in_flight == 0


async def test_a_final_state_that_nobody_waits_for_is_handed_to_the_reaper() -> None:
    """It outlives its request, is bounded, and is written before the pod leaves."""
    reaper, book = Reaper(), Book()

    async def request() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            reaper.hand_over("final state", lambda: book.write("state: cancelled"))

    running = asyncio.create_task(request())
    await asyncio.sleep(1)
    running.cancel()
    await asyncio.wait((running,))
    assert book.lines == []
    await reaper.drain(1)
    assert book.lines == ["state: cancelled"]


async def test_a_retry_does_not_belong_into_cleanup_and_does_not_get_the_time_for_it(house: Any) -> None:
    """What is released has the reaper's deadline: two seconds are no vendor call, let alone three."""
    house.server.latency = 5
    vendor, reaper = house.vendor(), Reaper()
    for _ in range(3):
        reaper.hand_over("a call where none belongs", lambda: vendor.client.post("/x", json={}))
    await reaper.drain(10)
    assert reaper.statistics().failed == 3
    assert vendor.statistics().in_flight == 0


async def test_our_own_timeout_leaves_nothing_to_clean_up(house: Any) -> None:
    """The policy's call timeout releases, settles and reports by itself; a handler adds its record."""

    async def never(request: httpx2.Request) -> httpx2.Response:
        await asyncio.sleep(3600)
        raise AssertionError

    house.server.answer = never
    vendor, book = house.vendor(call_timeout="2s"), Book()
    answer = await vendor.client.post("/chat/completions", json={})
    refused = answer.extensions[REFUSED]
    assert isinstance(refused, CallTimeout)
    assert isinstance(refused, Refused)
    await shielded(book.write(f"SLA violated: {refused.reason}"), timeout=1.0)
    assert book.lines == ["SLA violated: call-timeout"]
    assert vendor.statistics().in_flight == 0
