"""The dispatcher against a store that says odd things: no stall, no storm, nothing lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests.vendor.conftest import CountingStore

from headworks.current import Current, enter
from headworks.store.protocol import Question, Report, Standing
from headworks.vendor import Vendor
from headworks.verdict import Blocked, Verdict

Script = Callable[[Question], Verdict]


class Scripted(CountingStore):
    """Answers by script; the script may change while the test runs."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self.script = script
        self.standing = Standing()

    async def ask(self, question: Question) -> Verdict:
        self.asked.append(question)
        verdict = self.script(question)
        await asyncio.sleep(self.round_trip)
        return verdict

    async def report(self, report: Report) -> Standing:
        self.told.append(report)
        return self.standing


def yes(epoch: int = 0) -> Script:
    return lambda question: Verdict(True, 0.0, epoch=epoch)


async def call(vendor: Vendor, **body: Any) -> int:
    enter(Current())
    return (await vendor.client.post("/chat/completions", json={"model": "m", **body})).status_code


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict(False, 0.0),
        Verdict(False, 1e-6),
        Verdict(False, 0.0, blocked=Blocked.OPEN),
        Verdict(False, 1e-6, blocked=Blocked.COOL_DOWN),
    ],
)
async def test_a_refusal_without_a_wait_starts_no_storm_of_questions(
    house: Any, verdict: Verdict
) -> None:
    store = Scripted(lambda question: verdict)
    vendor = house.vendor(store=store, queue_timeout="1s")
    assert await call(vendor) in (429, 503)
    assert len(store.asked) <= 1100


async def test_a_store_that_has_forgotten_its_epoch_starves_nobody(house: Any) -> None:
    """A failover loses the last writes: the epoch goes back, and new bookings are good all the same."""
    store = Scripted(yes(epoch=101))
    vendor = house.vendor(store=store)
    assert await call(vendor) == 200
    store.script, store.standing = yes(epoch=100), Standing(epoch=100)
    assert await call(vendor) == 200
    assert len(store.asked) == 2


async def test_a_booking_made_before_the_breaker_opened_is_void(house: Any) -> None:
    """The late news of a yes neither opens a gate that shut meanwhile nor sends its caller."""
    store = Scripted(yes(epoch=1))
    store.standing = Standing(epoch=1)
    vendor = house.vendor(store=store)
    assert await call(vendor) == 200
    await house.reaper.drain(1)
    store.round_trip = 0.5
    waiting = asyncio.create_task(call(vendor))
    await asyncio.sleep(0.1)
    vendor._gate.hear(Standing(epoch=2, shut_for=60.0), asyncio.get_running_loop().time(), 1)
    store.script = lambda question: Verdict(False, 58.0, blocked=Blocked.OPEN, epoch=2)
    assert await waiting == 503
    assert len(house.server.arrivals) == 1
    assert vendor.statistics().shut_for > 50


async def test_half_open_is_looked_at_again_before_the_probes_leases_end(house: Any) -> None:
    """Another pod's probes closed the breaker: this one must not wait for their leases to run out."""
    store = Scripted(lambda question: Verdict(False, 45.0, blocked=Blocked.OPEN, epoch=1))
    vendor = house.vendor(store=store)
    assert await call(vendor) == 503
    assert await call(vendor) == 503
    assert len(store.asked) == 1, "for the moment it is known to be shut"
    store.script = yes(epoch=2)
    await asyncio.sleep(2.1)
    assert await call(vendor) == 200


async def test_when_a_costly_head_leaves_the_cheap_one_behind_it_goes_at_once(house: Any) -> None:
    def script(question: Question) -> Verdict:
        tokens = max((ask.cost for ask in question.asks if "tokens" in ask.key), default=0)
        return Verdict(False, 0.5) if tokens > 100 else Verdict(True, 0.0)

    store = Scripted(script)
    vendor = house.vendor(
        store=store, profile="openai", quota=["600/min", "6000 tokens/min"], limiter_timeout="3s"
    )
    loop = asyncio.get_running_loop()
    costly = asyncio.create_task(call(vendor, max_tokens=5000))
    await asyncio.sleep(0.01)
    cheap = asyncio.create_task(call(vendor, max_tokens=10))
    await asyncio.sleep(0.01)
    left_at = loop.time()
    costly.cancel()
    assert await cheap == 200
    assert loop.time() - left_at < 0.01


async def test_booking_anew_for_a_costly_head_borrows_no_second_probe(house: Any) -> None:
    """Only the first booking passes the gate; another probe would be lent to nobody."""
    store = Scripted(lambda question: Verdict(True, 0.0, wait=0.5, probe=1, epoch=1))
    vendor = house.vendor(store=store, profile="openai", quota=["6/min", "60000 tokens/min"])
    cheap = asyncio.create_task(call(vendor, max_tokens=10))
    await asyncio.sleep(0.1)
    costly = asyncio.create_task(call(vendor, max_tokens=1000))
    await asyncio.sleep(0.01)
    cheap.cancel()
    assert await costly == 200
    await house.reaper.drain(1)
    anew = [question for question in store.asked if question.gate is None]
    assert [[ask.cost for ask in question.asks] for question in anew] == [[1, 1000]]
    given_back = [report for report in store.told if any(c.units == -10 for c in report.corrections)]
    assert [report.probe for report in given_back] == [0], "the probe has gone over to the new booking"


async def test_all_of_a_call_is_paid_for_one_time(house: Any) -> None:
    """What a costly head adds may fall due later than what was booked; paid in two parts, the first
    would be free again while the vendor still counts the call."""
    due = iter([0.5, 2.0])
    store = Scripted(lambda question: Verdict(True, 0.0, wait=next(due), at_us=len(store.asked)))
    vendor = house.vendor(store=store, profile="openai", quota=["6/min", "60000 tokens/min"])
    cheap = asyncio.create_task(call(vendor, max_tokens=10))
    await asyncio.sleep(0.1)
    costly = asyncio.create_task(call(vendor, max_tokens=1000))
    await asyncio.sleep(0.01)
    cheap.cancel()
    assert await costly == 200
    await house.reaper.drain(1)
    paid = [[ask.cost for ask in question.asks] for question in store.asked]
    back = [[(c.units, c.at_us) for c in report.corrections] for report in store.told]
    assert paid == [[1, 10], [1, 1000]]
    assert [(-1, 1), (-10, 1)] in back


async def test_closing_while_a_question_is_in_flight_leaves_nothing(house: Any) -> None:
    store = Scripted(yes())
    store.round_trip = 5.0
    vendor = house.vendor(store=store)
    waiting = asyncio.create_task(call(vendor))
    await asyncio.sleep(0.1)
    await vendor.aclose()
    assert await waiting == 503
    await asyncio.sleep(10)
    now = vendor.statistics()
    assert (now.waiting, now.booked, now.in_flight, now.free) == (0, 0, 0, 50)


async def test_after_closing_nobody_is_admitted(house: Any) -> None:
    vendor = house.vendor()
    await vendor.aclose()
    with pytest.raises(Exception, match="shutting down"):
        async with vendor.call():
            pass
    assert not house.store.asked


async def test_two_lanes_share_slots_and_lose_none_to_cancellation(house: Any) -> None:
    house.store.round_trip, house.server.latency = 0.02, 0.3
    vendor = house.vendor(
        slots=2, models={"rare": {"quota": ["300/min"]}}, quota=["6000/min"], queue_timeout="60s"
    )
    calls = [asyncio.create_task(call(vendor, model="rare" if n % 2 else "m")) for n in range(60)]
    for n, task in enumerate(calls):
        if n % 3 == 0:
            await asyncio.sleep(0.013)
            task.cancel()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(result == 200 for result in done) >= 40
    assert house.server.highest == 2
    await asyncio.sleep(5)
    now = vendor.statistics()
    assert (now.waiting, now.booked, now.in_flight, now.free) == (0, 0, 0, 2)
