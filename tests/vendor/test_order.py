"""The order of a vendor call is code in one place; here it is pinned, way in and way out."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2

from headworks.limits.line import Line
from headworks.store.protocol import Question, Report, Standing
from headworks.testing.recording import RecordingSink
from headworks.vendor import Vendor
from headworks.vendor.gate import GateCache
from headworks.vendor.retry import Retry
from headworks.vendor.slots import Slots
from headworks.vendor.smoother import Smoother
from headworks.verdict import Verdict

WAY_IN = [
    "7 line: join",
    "8 gate: local copy",
    "9 smoother",
    "11 slot: pledged",
    "10 global limiter: book",
    "11 slot and head of the line: together",
    "12 call timeout opens",
    "13 vendor",
]
WAY_OUT = ["slot returns", "metrics", "store: settle, tell the breaker"]


def recorded(monkeypatch: Any, house: Any, steps: list[str]) -> Vendor:
    """A vendor whose every stage writes its number down as it is passed."""

    def note(owner: type, name: str, step: str) -> None:
        original = getattr(owner, name)

        def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
            if steps[-1:] != [step]:
                steps.append(step)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, noting)

    note(Line, "join", WAY_IN[0])
    note(Smoother, "wait", WAY_IN[2])
    note(Slots, "pledge_nowait", WAY_IN[3])
    note(Slots, "take_pledged", WAY_IN[5])
    note(Slots, "release", WAY_OUT[0])
    note(RecordingSink, "record", WAY_OUT[1])
    note(Retry, "delay", "14 retry")

    gate_wait = GateCache.wait

    def waited(self: GateCache, now: float) -> float:
        if steps and steps[-1] == WAY_IN[0]:
            steps.append(WAY_IN[1])
        return gate_wait(self, now)

    monkeypatch.setattr(GateCache, "wait", waited)

    store = house.store
    ask, report = store.ask, store.report

    async def asking(question: Question) -> Verdict:
        steps.append(WAY_IN[4])
        assert question.gate is not None, "breaker, cool-down and quotas are one question"
        return await ask(question)  # type: ignore[no-any-return]

    async def reporting(told: Report) -> Standing:
        steps.append(WAY_OUT[2])
        return await report(told)  # type: ignore[no-any-return]

    monkeypatch.setattr(store, "ask", asking)
    monkeypatch.setattr(store, "report", reporting)

    timeout = asyncio.timeout

    def opening(delay: float | None) -> asyncio.Timeout:
        if delay == 30.0 and steps[-1] not in (WAY_IN[6], WAY_IN[7]):
            steps.append(WAY_IN[6])
        return timeout(delay)

    monkeypatch.setattr(asyncio, "timeout", opening)

    async def answer(request: httpx2.Request) -> httpx2.Response:
        steps.append(WAY_IN[7])
        return httpx2.Response(200, json={}, request=request)

    house.server.answer = answer
    return house.vendor(call_timeout="30s")  # type: ignore[no-any-return]


async def test_a_call_passes_every_stage_in_the_order_of_the_design(
    house: Any, monkeypatch: Any
) -> None:
    """Steps 7 to 14, and the way out: slot first, then metrics, the store last and off the path."""
    steps: list[str] = []
    vendor = recorded(monkeypatch, house, steps)
    await vendor.client.post("/chat/completions", json={})
    await house.reaper.drain(1)
    metrics_of_admission = WAY_OUT[1]
    booked = [step for step in steps if step not in (metrics_of_admission,)]
    first_way_in = booked[: len(WAY_IN)]
    assert first_way_in == WAY_IN
    rest = booked[len(WAY_IN) :]
    assert rest.index("14 retry") < rest.index(WAY_OUT[0]), "retry decides before the body is read"
    assert rest.index(WAY_OUT[0]) < rest.index(WAY_OUT[2])


async def test_between_attempts_nothing_is_held(house: Any) -> None:
    """Retry is the outermost loop: while it backs off, no slot, no booking, no place in line."""
    states = []

    async def fail(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(503, request=request)

    house.server.answer = fail
    vendor = house.vendor(attempts=2)
    call = asyncio.create_task(vendor.client.post("/chat/completions", json={}))
    loop = asyncio.get_running_loop()
    for _ in range(100):
        if len(house.server.arrivals) == 1 and vendor.statistics().in_flight == 0:
            states.append(vendor.statistics())
        await asyncio.sleep(0.01)
        if call.done():
            break
    assert loop.time() > 0
    assert states, "the back-off was seen"
    assert all((state.in_flight, state.waiting) == (0, 0) for state in states)
    assert (await call).status_code == 503
    assert len(house.server.arrivals) == 2
