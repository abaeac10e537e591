"""What vendors, callers and clocks do that nobody expects: each was a defect once."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import httpx2
import pytest
from tests.vendor.test_sdks import Events, streaming

from headworks.current import Criticality, Current, enter
from headworks.errors import DeadlineExceeded
from headworks.limits.breaker import Ending
from headworks.limits.line import Line, Waiter
from headworks.policy.profiles import profile_named
from headworks.telemetry import Called
from headworks.vendor import REFUSED
from headworks.vendor.estimate import Outputs, estimate, json_of
from headworks.vendor.usage import UsageReader

PATH = "/chat/completions"


def answering(status: int, headers: Any = ()) -> Any:
    async def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, headers=headers, json={}, request=request)

    return answer


@pytest.mark.parametrize(
    ("said", "shut"),
    [
        ("nan", 1),
        ("inf", 1),
        ("-5", 1),
        ("0", 1),
        ("soon", 1),
        ("1e300", 1),
        ("-1e300", 1),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 1),
        ("86400", 300),
        ("Wed, 21 Oct 99999999999 07:28:00 GMT", 1),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 1),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 300),
    ],
)
async def test_a_strange_retry_after_loses_no_slot_and_pauses_within_reason(
    house: Any, said: str, shut: float
) -> None:
    house.server.answer = answering(429, {"retry-after": said})
    vendor = house.vendor()
    assert (await vendor.client.post(PATH, json={})).status_code == 429
    await house.reaper.drain(1)
    assert vendor.statistics().in_flight == 0
    assert shut <= vendor.statistics().shut_for + 0.01 <= 1.1 * shut + 0.02
    assert house.reaper.statistics().failed == 0


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("said", ["1e300", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_no_caller_is_told_to_come_back_after_the_end_of_time(
    house: Any, status: int, said: str
) -> None:
    """It was passed on, as a number of 301 digits."""
    house.server.answer = answering(status, {"retry-after": said})
    vendor = house.vendor()
    response = await vendor.client.post(PATH, json={})
    assert response.extensions[REFUSED].retry_after == 1.0
    await vendor.aclose()


async def test_a_vendor_that_asks_for_a_day_is_not_waited_for(house: Any) -> None:
    house.server.answer = answering(503, {"retry-after": "86400"})
    start = asyncio.get_running_loop().time()
    await house.vendor(attempts=3).client.post(PATH, json={})
    assert asyncio.get_running_loop().time() - start < 1
    assert len(house.server.arrivals) == 1


async def test_the_vendors_own_should_retry_does_not_stand_beside_ours(house: Any) -> None:
    house.server.answer = answering(503, {"X-Should-Retry": "true"})
    response = await house.vendor().client.post(PATH, json={})
    assert response.headers.get_list("x-should-retry") == ["false"]


async def test_a_vendors_cookie_is_not_carried_from_one_caller_to_the_next(house: Any) -> None:
    house.server.answer = answering(200, [("set-cookie", "sid=1"), ("set-cookie", "b=2")])
    vendor = house.vendor()
    first = await vendor.client.post(PATH, json={})
    assert first.headers.get_list("set-cookie") == ["sid=1", "b=2"]
    await vendor.client.post(PATH, json={})
    assert "cookie" not in house.server.requests[1].headers
    await vendor.client.post(PATH, json={}, headers={"cookie": "mine=1"})
    assert house.server.requests[2].headers["cookie"] == "mine=1"


async def test_a_long_healthy_stream_is_not_slow(house: Any) -> None:
    """What counts for the breaker is how long the answer took to begin."""
    house.server.answer = streaming(Events(100))
    vendor = house.vendor(call_timeout="2s", timeouts={"read": "2s"}, breaker={"min_calls": 2})
    for _ in range(3):
        assert (await vendor.client.post(PATH, json={})).status_code == 200
        await house.reaper.drain(1)
    assert [report.slow for report in house.store.told] == [False] * 3


async def test_a_request_out_of_time_says_nothing_about_the_vendor(house: Any) -> None:
    house.server.latency = 1.0
    vendor = house.vendor(breaker={"min_calls": 1})
    loop = asyncio.get_running_loop()
    enter(Current(deadline=loop.time() + 0.1))
    response = await vendor.client.post(PATH, json={})
    assert isinstance(response.extensions[REFUSED], DeadlineExceeded)
    enter(Current(deadline=loop.time() + 0.3))
    with pytest.raises(DeadlineExceeded):
        async with vendor.call():
            await asyncio.sleep(1)
    await house.reaper.drain(1)
    assert [event.ending for event in house.sink.of(Called)] == ["ignored", "ignored"]
    assert vendor.statistics().shut_for == 0


async def test_an_impatient_caller_says_nothing_about_the_vendor(house: Any) -> None:
    async def late(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ReadTimeout("late", request=request)

    house.server.answer = late
    vendor = house.vendor()
    await vendor.client.post(PATH, json={}, timeout=0.01)
    await vendor.client.post(PATH, json={})
    assert [event.ending for event in house.sink.of(Called)] == ["ignored", "overloaded"]


async def test_a_request_that_cannot_be_sent_says_nothing_about_the_vendor(house: Any) -> None:
    async def illegal(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.LocalProtocolError("illegal header value", request=request)

    house.server.answer = illegal
    with pytest.raises(httpx2.LocalProtocolError):
        await house.vendor().client.post(PATH, json={})
    assert [event.ending for event in house.sink.of(Called)] == ["ignored"]


async def test_retries_that_are_sent_count_against_the_budget(house: Any) -> None:
    """Slow failures with short naps: were only the sleepers counted, nearly all would be retried."""
    house.server.latency = 10.0
    house.server.answer = answering(503)
    vendor = house.vendor(
        attempts=2, slots=400, quota=["60000/min"], breaker={"min_calls": 9999}, expected_latency="10s"
    )

    async def one(start: float) -> None:
        await asyncio.sleep(start)
        await vendor.client.post(PATH, json={})

    await asyncio.gather(*(one(n * 0.1) for n in range(600)))
    assert len(house.server.arrivals) - 600 <= 0.25 * 600


async def test_an_answer_that_does_not_close_delays_no_retry_and_raises_nothing(house: Any) -> None:
    class Stuck(Events):
        async def aclose(self) -> None:
            await asyncio.sleep(3600)

    async def stuck(request: httpx2.Request) -> httpx2.Response:
        status = 503 if len(house.server.arrivals) == 1 else 200
        return httpx2.Response(status, stream=Stuck(), request=request)

    house.server.answer = stuck
    vendor = house.vendor(attempts=2)
    async with vendor.client.stream("POST", PATH, json={}) as response:
        assert response.status_code == 200
    assert vendor.statistics().in_flight == 0


async def test_a_dropped_stream_outside_of_any_request_is_collected(house: Any) -> None:
    events = Events(100)
    house.server.answer = streaming(events)
    vendor = house.vendor()
    request = vendor.client.build_request("POST", PATH, json={})
    response = await vendor.client.send(request, stream=True)
    assert vendor.statistics().in_flight == 1
    del response
    house.server.requests.clear()
    await asyncio.sleep(0.1)
    gc.collect()
    await asyncio.sleep(0.1)
    await house.reaper.drain(1)
    assert vendor.statistics().in_flight == 0
    assert events.closed


async def test_a_stream_closed_at_its_requests_end_ends_its_reader_too(house: Any) -> None:
    events = Events(100)
    house.server.answer = streaming(events)
    vendor, who = house.vendor(), Current()
    enter(who)

    async def read(response: httpx2.Response) -> None:
        async for _ in response.aiter_raw():
            pass

    request = vendor.client.build_request("POST", PATH, json={})
    response = await vendor.client.send(request, stream=True)
    reading = asyncio.create_task(read(response))
    await asyncio.sleep(0.35)
    (closer,) = who.closers
    await asyncio.gather(closer(), closer())
    with pytest.raises(httpx2.StreamClosed):
        await reading
    assert vendor.statistics().in_flight == 0
    assert events.sent < 10
    assert not who.closers


async def test_settling_early_keeps_the_slot_until_the_block_ends(house: Any) -> None:
    vendor = house.vendor(quota=["600/min", "10000 tokens/min"])
    async with vendor.call(tokens=100) as call:
        call.settle(tokens=40)
        call.settle(tokens=30, ending=Ending.OVERLOADED, retry_after=float("inf"))
        assert vendor.statistics().in_flight == 1
    call.settle(tokens=99)
    await house.reaper.drain(1)
    assert vendor.statistics().in_flight == 0
    assert [(e.ending, e.units) for e in house.sink.of(Called)] == [("overloaded", 30)]
    assert 299 <= vendor.statistics().shut_for <= 331


async def test_a_group_of_broken_connections_counts_against_the_vendor(house: Any) -> None:
    vendor = house.vendor()
    with pytest.raises(Exception, match="the call to vendor"):
        async with vendor.call():
            raise ExceptionGroup("tasks", [ConnectionResetError("gone"), EOFError()])
    with pytest.raises(ExceptionGroup):
        async with vendor.call():
            raise ExceptionGroup("tasks", [ConnectionResetError("gone"), KeyError("bug")])
    assert [event.ending for event in house.sink.of(Called)] == ["failed", "ignored"]


async def test_absurd_bodies_neither_raise_nor_cost() -> None:
    profile = profile_named("openai")
    nested = b'{"messages":' + b'{"content":[' * 400 + b"]}" * 400 + b"}"
    for content in (nested, b"[" * 100_000, b'{"a":' * 100_000):
        await estimate(json_of(content), profile.charges, Outputs())
    for number in (b"9" * 5000, b"9" * 10, b"-1", b"true", b'"7"', b'{"a":' * 900):
        reader = UsageReader(profile.usage)
        reader.feed(b'{"usage": {"prompt_tokens": ' + number + b', "completion_tokens": 1}}')
        assert reader.usage().get("input_tokens") is None


@pytest.mark.parametrize("quota", [("60/min", "1000 tokens/min"), ("60/min",)])
async def test_a_caller_who_asks_for_more_tokens_than_there_are_numbers_is_answered(
    house: Any, quota: tuple[str, ...]
) -> None:
    """Where tokens count the call is refused, where they do not it is made; nobody behind it notices."""
    vendor = house.vendor(quota=list(quota))
    for huge in (10**308, 10**400):
        body = {"model": "m", "max_tokens": huge, "n": huge}
        response = await vendor.client.post(PATH, json=body)
        assert response.status_code == (200 if len(quota) == 1 else 429)
    assert (await vendor.client.post(PATH, json={"max_tokens": 5})).status_code == 200
    assert vendor.statistics().in_flight == vendor.statistics().waiting == 0
    await vendor.aclose()


def told_elsewhere(*uses: Callable[[], Coroutine[Any, Any, object]]) -> list[str]:
    """What each raises in an event loop of another thread, as in an endpoint that is no `async def`."""
    told = []

    def elsewhere() -> None:
        for use in uses:
            with pytest.raises(RuntimeError) as raised:
                asyncio.run(use())
            told.append(str(raised.value))

    thread = threading.Thread(target=elsewhere, name="elsewhere")
    thread.start()
    thread.join()
    return told


async def test_another_event_loop_is_told_so_and_takes_nothing_from_ours(house: Any) -> None:
    """`asyncio.run(client.post(…))` in a thread once took the store down, and for good."""
    vendor = house.vendor()
    await vendor.client.post(PATH, json={})

    async def hold() -> None:
        async with vendor.call():
            pass

    told = told_elsewhere(lambda: vendor.client.post(PATH, json={}), hold)
    assert ["vendor 'llm'" in sentence and "'elsewhere'" in sentence for sentence in told] == [True] * 2
    assert (len(house.server.requests), len(house.store.asked)) == (1, 1)
    assert (await vendor.client.post(PATH, json={})).status_code == 200
    await vendor.aclose()


def test_an_event_loop_that_has_ended_is_followed_by_the_next(house: Any) -> None:
    vendor = house.vendor()
    for _ in range(3):
        assert asyncio.run(vendor.client.post(PATH, json={})).status_code == 200


def test_looking_along_a_line_of_those_who_left_stays_cheap() -> None:
    line: Line[int] = Line()
    waiters = [Waiter(n, f"t{n}", Criticality.DEFAULT, units=n + 1) for n in range(1000)]
    for waiter in waiters:
        line.join(waiter)
    for waiter in waiters[1:480]:
        line.leave(waiter)
    assert line.nth(1) is waiters[480]
    assert len(line._classes[Criticality.DEFAULT].heap) == 521


ONE, ALL = (Criticality.DEFAULT,), tuple(Criticality)


@pytest.mark.parametrize(
    ("pods", "classes", "at_once"), [(1, ONE, 0.99), (10, ONE, 0.96), (1, ALL, 0.98), (10, ALL, 0.94)]
)
async def test_under_a_flood_refusals_come_at_once_and_few_wait_in_vain(
    house: Any, pods: int, classes: tuple[Criticality, ...], at_once: float
) -> None:
    """Five times overloaded: refused within 50 ms, 4 % of all in vain at most, and the quota fully used.

    The fewer calls a pod sends a second, and the more of higher classes come, the less is foreseen.
    """
    rng = random.Random(11)
    house.server.latency = 0.5
    fleet = [
        house.vendor(pod=f"p{n}", replicas=pods, expected_latency="1s", queue_timeout="5s")
        for n in range(pods)
    ]
    loop = asyncio.get_running_loop()
    start, took = loop.time(), []

    async def one() -> None:
        enter(Current(tenant=f"t{rng.randrange(10)}", criticality=rng.choice(classes)))
        came = loop.time()
        response = await rng.choice(fleet).client.post(PATH, json={})
        took.append((response.status_code, loop.time() - came))

    async with asyncio.TaskGroup() as group:
        while loop.time() < start + 120:
            group.create_task(one())
            await asyncio.sleep(rng.expovariate(50))
    refused = [seconds for status, seconds in took if status != 200]
    steady = [at for at in house.server.arrivals if start + 10 <= at < start + 120]
    assert sum(seconds <= 0.05 for seconds in refused) >= at_once * len(refused)
    assert sum(seconds >= 4.99 for seconds in refused) <= 0.04 * len(took)
    assert len(steady) >= 0.99 * 110 * 600 / 60.05


@pytest.mark.parametrize(
    ("kind", "content", "ending"),
    [
        ("text/event-stream", b"", "failed"),
        ("text/event-stream", b": hi\n\n", "ok"),
        ("application/json", b"", "ok"),
    ],
)
async def test_a_stream_succeeds_by_its_first_byte(
    house: Any, kind: str, content: bytes, ending: str
) -> None:
    """Streams that begin well and end at once with nothing would else keep the breaker closed."""

    async def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": kind}, content=content, request=request)

    house.server.answer = answer
    response = await house.vendor().client.post(PATH, json={})
    assert (response.status_code, response.content) == (200, content)
    assert [event.ending for event in house.sink.of(Called)] == [ending]
