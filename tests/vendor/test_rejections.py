"""A vendor's 429 is one event for the whole fleet: classified, one pause, one probe, a slow start."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest

from headworks.policy.profiles import profile_named
from headworks.telemetry import Rejected, Told
from headworks.vendor.rejection import Rejection, classify
from headworks.vendor.told import Headers

Answer = Callable[[httpx2.Request], Awaitable[httpx2.Response]]


async def call(vendor: Any, **body: Any) -> httpx2.Response:
    return await vendor.client.post("/chat/completions", json={"model": "m", **body})


def rejecting(times: int, body: bytes = b"{}", **headers: str) -> Answer:
    """A vendor that rejects the first calls."""
    left = [times]

    async def answer(request: httpx2.Request) -> httpx2.Response:
        left[0] -= 1
        await asyncio.sleep(0.1)
        if left[0] < 0:
            return httpx2.Response(200, json={}, request=request)
        stream = httpx2.ByteStream(body)
        return httpx2.Response(429, headers=headers, stream=stream, request=request)

    return answer


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"error":{"code":"rate_limit_exceeded","message":"Rate limit reached"}}', Rejection.RATE),
        (b'{"error":{"code":"insufficient_quota","message":"check your billing"}}', Rejection.SPEND),
        (b'{"error":{"message":"Your credit balance is too low"}}', Rejection.SPEND),
        (b'{"error":{"message":"would exceed your acceleration limit"}}', Rejection.RAMP),
        (b"", Rejection.RATE),
        (b"\xff\x00", Rejection.RATE),
    ],
)
def test_a_body_says_what_kind_it_is(body: bytes, kind: Rejection) -> None:
    assert classify(body) is kind


async def test_spent_money_is_not_tried_again_and_pauses_for_long(house: Any) -> None:
    body = b'{"error":{"code":"insufficient_quota"}}'
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    house.server.answer = rejecting(9, gzip.compress(body), **headers)
    vendor = house.vendor(attempts=3)
    answer = await call(vendor)
    assert (answer.status_code, answer.content) == (429, body), "the body reaches the caller as it was"
    assert answer.headers["x-should-retry"] == "false"
    assert len(house.server.arrivals) == 1
    assert [event.kind for event in house.sink.of(Rejected)] == ["spend"]
    await house.reaper.drain(1)
    assert vendor.statistics().shut_for >= 59


class Odd(httpx2.AsyncByteStream):
    """The body of a rejection that breaks off, falls silent, or goes on for ever."""

    def __init__(self, then: str) -> None:
        self.then, self.sent, self.closed = then, 0, False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b'{"error": "slow down"'
        if self.then == "breaks":
            raise httpx2.ReadError("reset")
        if self.then == "silent":
            await asyncio.sleep(3600)
        while True:
            self.sent += 65_536
            yield b" " * 65_536

    async def aclose(self) -> None:
        self.closed = True


@pytest.mark.parametrize("then", ["breaks", "silent", "endless"])
async def test_a_rejection_whose_body_does_not_end_is_one_all_the_same(house: Any, then: str) -> None:
    """The fleet once heard nothing of it, or only after the call's timeout, with all of it in memory."""
    body = Odd(then)

    async def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(429, headers={"retry-after": "10"}, stream=body, request=request)

    house.server.answer = answer
    vendor = house.vendor()
    began = asyncio.get_running_loop().time()
    rejected = await call(vendor)
    assert (rejected.status_code, rejected.content[:8]) == (429, b'{"error"')
    assert asyncio.get_running_loop().time() - began < 2.0
    assert body.sent <= 2 << 20
    assert body.closed
    await house.reaper.drain(1)
    assert vendor.statistics().shut_for > 8.0
    assert vendor.statistics().in_flight == 0


async def test_a_pause_is_never_shorter_than_asked_for_and_a_little_longer_by_chance(house: Any) -> None:
    house.server.answer = rejecting(1, **{"retry-after": "10"})
    vendor = house.vendor()
    await call(vendor)
    await house.reaper.drain(1)
    assert 10.0 <= vendor.statistics().shut_for + 0.01 <= 11.01
    assert vendor.statistics().shut_for != pytest.approx(10.0, abs=1e-3)


async def test_after_a_pause_one_call_goes_first_and_then_ever_more(house: Any) -> None:
    """Three pods, a crowd in each line, a vendor that answers after half a minute."""
    house.server.answer = rejecting(1, **{"retry-after": "2"})
    pods = [
        house.vendor(pod=f"pod-{n}", replicas=3, quota=["60000/min"], queue_timeout="60s")
        for n in range(3)
    ]
    await call(pods[0])
    await house.reaper.drain(1)
    ok = rejecting(0)

    async def slowly(request: httpx2.Request) -> httpx2.Response:
        await asyncio.sleep(29.0)
        return await ok(request)

    house.server.answer, first = slowly, len(house.server.arrivals)
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*(call(pods[n % 3]) for n in range(90)))
    assert {answer.status_code for answer in answers} == {200}
    arrivals = house.server.arrivals[first:]
    began = arrivals[0]
    waves = [sum(began + n <= at < began + n + 1 for at in arrivals) for n in range(6)]
    assert waves[0] == 1, "a single probe"
    assert waves[1] <= 3
    assert waves[2] <= 8
    assert sum(waves) > 60, "and soon all of it, though no answer has come"


async def test_a_probe_that_is_rejected_pauses_the_fleet_again(house: Any) -> None:
    house.server.answer = rejecting(2, **{"retry-after": "2"})
    vendor = house.vendor(queue_timeout="60s", quota=["60000/min"])
    await call(vendor)
    await house.reaper.drain(1)
    answers = await asyncio.gather(*(call(vendor) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [429]
    second, third = house.server.arrivals[1:3]
    assert third - second >= 2.0


async def test_a_probe_whose_caller_leaves_makes_way_for_another(house: Any) -> None:
    house.server.answer = rejecting(1, **{"retry-after": "1"})
    vendor = house.vendor(queue_timeout="60s", quota=["60000/min"])
    await call(vendor)
    await house.reaper.drain(1)
    house.server.latency = 30.0
    probe = asyncio.create_task(call(vendor))
    while len(house.server.arrivals) < 2:  # noqa: ASYNC110  the server notes arrivals and tells nobody
        await asyncio.sleep(0.01)
    sent, house.server.latency = asyncio.get_running_loop().time(), 0.0
    others = [asyncio.create_task(call(vendor)) for _ in range(5)]
    await asyncio.sleep(0.3)
    assert len(house.server.arrivals) == 2, "all wait for the probe"
    probe.cancel()
    async with asyncio.timeout(5):
        assert {(await other).status_code for other in others} == {200}
    assert house.server.arrivals[2] < sent + 1.0, "its place was free at once"


async def test_what_headers_tell_is_shown_and_changes_nothing(house: Any) -> None:
    async def answer(request: httpx2.Request) -> httpx2.Response:
        headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}
        return httpx2.Response(200, headers=headers, json={}, request=request)

    house.server.answer = answer
    vendor = house.vendor(profile="openai")
    assert [(await call(vendor)).status_code for _ in range(3)] == [200] * 3
    assert house.sink.of(Told)[0] == Told("llm", "requests", 0.0, 360.0)


@pytest.mark.parametrize(
    ("profile", "remaining", "reset", "seconds"),
    [
        ("openai", "x-ratelimit-remaining-requests", ("x-ratelimit-reset-requests", "120ms"), 0.12),
        ("openai", "x-ratelimit-remaining-requests", ("x-ratelimit-reset-requests", "1m2.5s"), 62.5),
        ("openai", "x-ratelimit-remaining-requests", ("x-ratelimit-reset-requests", "soon"), None),
        (
            "anthropic",
            "anthropic-ratelimit-requests-remaining",
            ("anthropic-ratelimit-requests-reset", "2026-01-01T00:00:30Z"),
            30.0,
        ),
        (
            "anthropic",
            "anthropic-ratelimit-requests-remaining",
            ("anthropic-ratelimit-requests-reset", "2026-01-01"),
            None,
        ),
    ],
)
def test_every_dialect_of_resets_is_read(
    profile: str, remaining: str, reset: tuple[str, str], seconds: float | None
) -> None:
    headers = httpx2.Headers({remaining: "7", reset[0]: reset[1]})
    told = Headers("v", profile_named(profile).headers).read(headers, datetime(2026, 1, 1, tzinfo=UTC))
    assert told == [Told("v", "requests", 7.0, seconds)]
