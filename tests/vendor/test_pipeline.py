"""The outbound pipeline: order, pacing, refusals at once, and nothing lost."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from headworks.current import Criticality, Current, enter
from headworks.errors import CallTimeout, ForeignOrigin, VendorFailed, VendorQuota
from headworks.limits.breaker import Ending
from headworks.telemetry import Called, Waited
from headworks.vendor import REFUSED, Vendor

PATH = "/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def idle(vendor: Vendor) -> bool:
    """Nothing waits, nothing is booked, nothing is out, and every slot is free."""
    now = vendor.statistics()
    return (now.waiting, now.booked, now.in_flight) == (0, 0, 0) and now.free == vendor._slots.total


async def settled(house: Any) -> None:
    """Let bookings made ahead fall due, and their give-back reach the store."""
    await asyncio.sleep(5)
    await house.reaper.drain(1)


async def ask(vendor: Vendor, **who: Any) -> httpx2.Response:
    enter(Current(**who))
    return await vendor.client.post(PATH, json=BODY)


async def test_a_call_goes_through_and_leaves_nothing_behind(house: Any) -> None:
    vendor = house.vendor()
    response = await ask(vendor)
    assert response.status_code == 200
    await house.reaper.drain(1)
    assert idle(vendor)
    assert [event.ending for event in house.sink.of(Called)] == ["ok"]


async def test_a_call_that_would_cost_less_than_nothing_is_a_mistake(house: Any) -> None:
    """As for `as_`: it is named, and nothing has been booked for it."""
    vendor = house.vendor()
    with pytest.raises(ValueError, match="tokens: -5 must be 0 or more"):
        async with vendor.call(tokens=-5):
            pass
    assert idle(vendor)


async def test_two_trips_to_the_store_per_call_at_most(house: Any) -> None:
    vendor = house.vendor()
    for _ in range(20):
        await ask(vendor)
    await house.reaper.drain(1)
    assert len(house.store.asked) == 20
    assert len(house.store.told) <= 20


async def test_calls_are_paced_as_the_quota_says(house: Any) -> None:
    """600/min against a window vendor is one call per 100 ms, stretched by the jitter's share."""
    vendor = house.vendor(queue_timeout="30s")
    await asyncio.gather(*(ask(vendor) for _ in range(50)))
    gaps = [b - a for a, b in zip(house.server.arrivals, house.server.arrivals[1:], strict=False)]
    pace = 60.05 / 600
    assert min(gaps) >= pace - 1e-5
    assert house.server.arrivals[-1] - house.server.arrivals[0] == pytest.approx(49 * pace, rel=1e-3)


async def test_a_slow_store_does_not_cost_utilisation(house: Any) -> None:
    """Bookings are made ahead, so that a round trip of half a pace is hidden."""
    house.store.round_trip = 0.05
    vendor = house.vendor(queue_timeout="30s")
    await asyncio.gather(*(ask(vendor) for _ in range(50)))
    assert house.server.arrivals[-1] - house.server.arrivals[0] == pytest.approx(
        49 * 60.05 / 600, rel=0.02
    )


async def test_no_more_calls_are_out_than_slots(house: Any) -> None:
    house.server.latency = 2.0
    vendor = house.vendor(slots=3, queue_timeout="60s", quota=["6000/min"])
    await asyncio.gather(*(ask(vendor) for _ in range(12)))
    assert house.server.highest == 3
    assert house.server.arrivals[-1] - house.server.arrivals[0] == pytest.approx(6.0, abs=0.1)
    await house.reaper.drain(1)
    assert idle(vendor)


async def test_while_slots_are_taken_nothing_is_booked(house: Any) -> None:
    """A token taken by a call that then waits for a slot would be wasted or sent late."""
    house.server.latency = 3.0
    vendor = house.vendor(slots=1, queue_timeout="10s")
    calls = [asyncio.create_task(ask(vendor)) for _ in range(3)]
    await asyncio.sleep(1.0)
    assert len(house.store.asked) == 1
    await asyncio.gather(*calls)


async def test_a_wait_that_would_be_too_long_is_refused_at_once(house: Any) -> None:
    vendor = house.vendor(queue_timeout="2s", expected_latency="1s", slots=10)
    loop = asyncio.get_running_loop()
    start = loop.time()
    refused_after = []

    async def one() -> None:
        response = await ask(vendor)
        if response.status_code == 503:
            refused_after.append(loop.time() - start)
            assert response.headers["x-headworks-refusal"] == "queue-timeout"
            assert float(response.headers["retry-after"]) >= 1

    await asyncio.gather(*(one() for _ in range(200)))
    assert len(refused_after) >= 150
    assert sum(after < 0.01 for after in refused_after) >= 0.8 * len(refused_after)
    assert max(refused_after) <= 2.0
    await settled(house)
    assert idle(vendor)


async def test_an_exhausted_quota_is_refused_at_once_as_429(house: Any) -> None:
    vendor = house.vendor(quota=["2/min"], queue_timeout="5s")
    first = await ask(vendor)
    start = asyncio.get_running_loop().time()
    second = await ask(vendor)
    assert (first.status_code, second.status_code) == (200, 429)
    assert asyncio.get_running_loop().time() - start < 0.1
    refused = second.extensions[REFUSED]
    assert isinstance(refused, VendorQuota)
    assert refused.retry_after == pytest.approx(30, rel=0.01)
    third = await ask(vendor)
    assert third.status_code == 429
    assert len(house.store.asked) == 2, "what is known not to fit costs the store nothing"


async def test_a_call_that_can_never_fit_is_refused_alone(house: Any) -> None:
    vendor = house.vendor(quota=["600/min", "1000 tokens/min"])
    big = {"model": "m", "max_tokens": 5000, "messages": []}
    refused, served = await asyncio.gather(vendor.client.post(PATH, json=big), ask(vendor))
    assert refused.status_code == 429
    assert "ever allows" in refused.json()["detail"]
    assert served.status_code == 200


async def test_a_costly_call_that_must_wait_does_not_turn_cheap_ones_away(house: Any) -> None:
    vendor = house.vendor(profile="openai", quota=["600/min", "6000 tokens/min"], queue_timeout="5s")
    spent = {"model": "m", "max_tokens": 5500, "messages": []}
    assert (await vendor.client.post(PATH, json=spent)).status_code == 200
    costly = vendor.client.post(PATH, json={"model": "m", "max_tokens": 4000, "messages": []})
    cheap = vendor.client.post(PATH, json={"model": "m", "max_tokens": 10, "messages": []})
    statuses = [response.status_code for response in await asyncio.gather(costly, cheap)]
    assert statuses == [429, 200]


async def test_the_polite_tenant_is_served_beside_a_flooder(house: Any) -> None:
    vendor = house.vendor(queue_timeout="5s")
    served: dict[str, int] = {"flooder": 0, "polite": 0}

    async def one(tenant: str) -> None:
        response = await ask(vendor, tenant=tenant)
        served[tenant] += response.status_code == 200

    async def client(tenant: str, calls: int, every: float) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(calls):
                group.create_task(one(tenant))
                await asyncio.sleep(every)

    await asyncio.gather(client("flooder", 3000, 0.01), client("polite", 60, 0.5))
    assert served["polite"] >= 58
    assert sum(served.values()) >= 280, "and the quota is used"


async def test_the_critical_go_before_the_rest(house: Any) -> None:
    vendor = house.vendor(queue_timeout="30s")
    finished: list[str] = []

    async def one(name: str, criticality: Criticality) -> None:
        await ask(vendor, tenant=name, criticality=criticality)
        finished.append(name)

    batch = [one("batch", Criticality.BACKGROUND) for _ in range(20)]
    users = [one("user", Criticality.CRITICAL) for _ in range(5)]
    await asyncio.gather(*batch, *users)
    assert finished[:7].count("user") == 5


async def test_a_cancelled_wait_costs_nothing(house: Any) -> None:
    vendor = house.vendor(queue_timeout="30s")
    calls = [asyncio.create_task(ask(vendor)) for _ in range(30)]
    await asyncio.sleep(0.35)
    for call in calls[5:25]:
        call.cancel()
    done = await asyncio.gather(*calls, return_exceptions=True)
    served = sum(isinstance(result, httpx2.Response) for result in done)
    assert served == 10
    assert len(house.server.arrivals) == 10
    await settled(house)
    assert idle(vendor)
    taken = house.server.arrivals[-1] - house.server.arrivals[0]
    assert taken <= 11 * 60.05 / 600, "no booking was wasted on those who left"


async def test_a_booking_that_finds_nobody_is_given_back(house: Any) -> None:
    vendor = house.vendor(quota=["6/min"], queue_timeout="30s", limiter_timeout="30s")
    await ask(vendor)
    waiting = asyncio.create_task(ask(vendor))
    await asyncio.sleep(1)
    waiting.cancel()
    await asyncio.sleep(20)
    await house.reaper.drain(1)
    assert idle(vendor)
    start = asyncio.get_running_loop().time()
    await ask(vendor)
    assert asyncio.get_running_loop().time() - start < 0.1


async def test_a_late_vendor_is_cut_off_and_the_slot_returns(house: Any) -> None:
    house.server.latency = 100.0
    vendor = house.vendor(call_timeout="2s", timeouts={"read": "2s"})
    response = await ask(vendor)
    assert response.status_code == 504
    assert isinstance(response.extensions[REFUSED], CallTimeout)
    await house.reaper.drain(1)
    assert idle(vendor)
    assert house.sink.of(Called)[0].ending == Ending.OVERLOADED


async def test_waiting_in_line_does_not_eat_the_call_timeout(house: Any) -> None:
    house.server.latency = 1.9
    vendor = house.vendor(
        slots=1, call_timeout="2s", timeouts={"read": "2s"}, queue_timeout="10s", expected_latency="2s"
    )
    responses = await asyncio.gather(*(ask(vendor) for _ in range(4)))
    assert [response.status_code for response in responses] == [200] * 4


async def test_the_requests_deadline_bounds_line_and_call(house: Any) -> None:
    house.server.latency = 10.0
    vendor = house.vendor(slots=1, expected_latency="1s")
    loop = asyncio.get_running_loop()
    start = loop.time()
    deadline = start + 3.0
    calls = [ask(vendor, deadline=deadline) for _ in range(2)]
    answers = await asyncio.gather(*calls)
    assert [answer.status_code for answer in answers] == [504, 504]
    assert {answer.json()["reason"] for answer in answers} == {"deadline-exceeded"}
    assert loop.time() - start == pytest.approx(3.0, abs=0.01)


async def test_a_failing_vendor_becomes_a_502_and_keeps_its_own_answer(house: Any) -> None:
    async def fail(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(500, json={"error": "theirs"}, request=request)

    house.server.answer = fail
    response = await ask(house.vendor())
    assert (response.status_code, response.json()) == (500, {"error": "theirs"})
    assert isinstance(response.extensions[REFUSED], VendorFailed)
    assert response.headers["x-should-retry"] == "false"


async def test_an_unreachable_vendor_becomes_a_502(house: Any) -> None:
    async def refuse(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("connection refused", request=request)

    house.server.answer = refuse
    vendor = house.vendor(attempts=3)
    response = await ask(vendor)
    assert response.status_code == 502
    assert len(house.server.arrivals) == 3, "a connection that failed is safe to try again"
    await house.reaper.drain(1)
    assert idle(vendor)


async def test_a_vendors_429_pauses_the_whole_fleet(house: Any) -> None:
    async def busy(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(429, headers={"retry-after": "20"}, request=request)

    house.server.answer = busy
    first, second = house.vendor(pod="one"), house.vendor(pod="two")
    assert (await ask(first)).status_code == 429
    await house.reaper.drain(1)
    house.server.answer = None
    for vendor in (first, second):
        response = await ask(vendor)
        assert (response.status_code, response.json()["reason"]) == (503, "vendor-open")
        assert 15 <= float(response.headers["retry-after"]) <= 21
    assert len(house.server.arrivals) == 1
    await asyncio.sleep(21)
    assert (await ask(second)).status_code == 200


async def test_the_breaker_opens_for_the_fleet_and_closes_after_probes(house: Any) -> None:
    async def fail(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(500, request=request)

    house.server.answer = fail
    breaker = {"min_calls": 5, "open_for": "10s", "probes": 2}
    first = house.vendor(pod="one", breaker=breaker)
    second = house.vendor(pod="two", breaker=breaker)
    for _ in range(5):
        await ask(first)
    await house.reaper.drain(1)
    assert (await ask(second)).status_code == 503
    assert len(house.server.arrivals) == 5
    house.server.answer = None
    await asyncio.sleep(10.5)
    for _ in range(4):
        assert (await ask(second)).status_code == 200
        await house.reaper.drain(1)
    assert (await ask(first)).status_code == 200


async def test_retries_hold_nothing_and_stop_at_the_budget(house: Any) -> None:
    async def fail(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(503, request=request)

    house.server.answer = fail
    vendor = house.vendor(attempts=3, quota=["6000/min"], breaker={"min_calls": 1000})
    await asyncio.gather(*(ask(vendor) for _ in range(20)))
    assert 20 < len(house.server.arrivals) <= 20 + 20 * 0.2 * 2 + 2
    await house.reaper.drain(1)
    assert idle(vendor)


async def test_a_request_to_another_origin_is_refused_naming_both(house: Any) -> None:
    vendor = house.vendor()
    with pytest.raises(ForeignOrigin) as caught:
        await vendor.client.post("https://api.elsewhere.example/v1/chat", json=BODY)
    assert "https://api.elsewhere.example:443" in str(caught.value)
    assert "https://vendor.example:443" in str(caught.value)
    assert not house.server.arrivals


async def test_any_other_client_holds_slot_and_booking_in_a_block(house: Any) -> None:
    vendor = house.vendor(quota=["600/min", "10000 tokens/min"])
    async with vendor.call(tokens=100) as call:
        assert vendor.statistics().in_flight == 1
        call.settle(tokens=40)
    await house.reaper.drain(1)
    assert idle(vendor)
    with pytest.raises(VendorFailed):
        async with vendor.call():
            raise ConnectionResetError("gone")
    with pytest.raises(KeyError):
        async with vendor.call():
            raise KeyError("a bug of the caller")
    await house.reaper.drain(1)
    assert idle(vendor)
    assert [event.ending for event in house.sink.of(Called)] == ["ok", "failed", "ignored"]


async def test_closing_refuses_who_waits_and_returns_every_booking(house: Any) -> None:
    house.server.latency = 1.0
    vendor = house.vendor(queue_timeout="30s", quota=["60/min"], limiter_timeout="20s")
    calls = [asyncio.create_task(ask(vendor)) for _ in range(5)]
    await asyncio.sleep(0.5)
    await vendor.aclose()
    done = await asyncio.gather(*calls, return_exceptions=True)
    refused = [r for r in done if isinstance(r, httpx2.Response) and r.status_code == 503]
    assert len(refused) == 4
    await house.reaper.drain(1)
    assert idle(vendor)


async def test_waited_is_told_once_per_call_sent(house: Any) -> None:
    vendor = house.vendor()
    await asyncio.gather(*(ask(vendor) for _ in range(5)))
    assert len(house.sink.of(Waited)) == 5


async def test_a_call_under_a_models_quota_leaves_the_account_to_the_others(house: Any) -> None:
    vendor = house.vendor(
        quota=["600/min"], models={"rare": {"quota": ["6/min"]}}, queue_timeout="20s", slots=10
    )

    async def rare() -> None:
        await vendor.client.post(PATH, json={**BODY, "model": "rare"})

    rares = [asyncio.create_task(rare()) for _ in range(2)]
    start = asyncio.get_running_loop().time()
    await asyncio.gather(*(ask(vendor) for _ in range(40)))
    assert asyncio.get_running_loop().time() - start < 4.6
    await asyncio.gather(*rares)
