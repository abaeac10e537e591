"""Errors that streams tell of midway, under a status of 200: the vendor has failed all the same."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.vendor.conftest import House
from tests.vendor.sdks import MESSAGES, Side

from headworks.limits.breaker import Ending
from headworks.telemetry import Called, Rejected
from headworks.testing.fake_vendor.wire import WORDS
from headworks.vendor.midway import find
from headworks.vendor.rejection import Rejection

TOKENS: dict[str, Any] = {"quota": ["6000/min", "90000 input tokens/min", "90000 output tokens/min"]}
BREAKER: dict[str, Any] = {"window": "60s", "min_calls": 4, "failure_ratio": 0.5, "open_for": "30s"}


@pytest.fixture(params=["openai", "anthropic"])
def name(request: Any) -> str:
    found: str = request.param
    return found


def error(**said: Any) -> bytes:
    return b"event: error\ndata: " + json.dumps({"type": "error", "error": said}).encode() + b"\n\n"


def data(**said: Any) -> bytes:
    return b"data: " + json.dumps(said).encode() + b"\n\n"


TEXT = 'event: error\n\ndata: {"type":"error","error":{"type":"overloaded_error"}}\n\n'
QUIET = [
    data(type="content_block_delta", delta={"type": "text_delta", "text": TEXT}),
    data(choices=[{"delta": {"content": TEXT}}], error=None),
    data(type="content_block_start", content_block={"input": {"error": {"type": "api_error"}}}),
    data(type="response.completed", response={"error": None}),
    b": error\n\n",
    b"event: errors\ndata: no error\n\n",
    b"data: [DONE]\n\n",
]
"""Events that tell of no error, whatever the text in them says."""

TOLD = [
    (error(type="overloaded_error", message="Overloaded"), Ending.OVERLOADED),
    (error(type="rate_limit_error", message="too many"), Ending.OVERLOADED),
    (error(type="api_error", message="Internal server error"), Ending.FAILED),
    (error(type="timeout_error", message="too long"), Ending.FAILED),
    (error(type="invalid_request_error", message="too long"), Ending.OK),
    (error(type="authentication_error", message="who?"), Ending.OK),
    (error(type="request_too_large", message="big"), Ending.OK),
    (data(error={"message": "oops", "type": "server_error", "code": None}), Ending.FAILED),
    (
        data(error={"message": "oops", "type": "tokens", "code": "rate_limit_exceeded"}),
        Ending.OVERLOADED,
    ),
    (data(error={"message": "long", "type": None, "code": "context_length_exceeded"}), Ending.OK),
    (data(error={"message": "filtered", "code": "content_filter"}), Ending.OK),
    (data(error={"message": "gone", "code": 502}, choices=[]), Ending.FAILED),
    (data(error={"message": "full", "code": "529"}, choices=[]), Ending.OVERLOADED),
    (data(error={"message": "wrong", "code": 400}, choices=[]), Ending.OK),
    (data(error={"message": "odd", "code": "4" * 5000, "type": [{}]}), Ending.FAILED),
    (data(error="overloaded"), Ending.OVERLOADED),
    (data(error={}, type="error"), Ending.FAILED),
    (data(type="error", code="server_error", message="oops", sequence_number=3), Ending.FAILED),
    (data(type="response.failed", response={"error": {"code": "server_error"}}), Ending.FAILED),
    (b"event: error\r\ndata: what?\r\n\r\n", Ending.FAILED),
    (b"event:error\ndata: {\n\n", Ending.FAILED),
]


@pytest.mark.parametrize(("event", "ending"), TOLD)
def test_an_error_ends_the_call_as_its_status_would(event: bytes, ending: Ending) -> None:
    found = find(QUIET[0] + event)
    assert found is not None
    assert found.ending is ending


@given(st.lists(st.sampled_from(QUIET), max_size=5), st.integers(0, 400))
def test_no_text_forges_an_error_wherever_what_was_kept_begins(events: list[bytes], cut: int) -> None:
    assert find(b"".join(events)[cut:]) is None


@pytest.mark.parametrize("after", [b"", QUIET[-1]])
def test_what_kind_of_overload_it_was_stands_in_the_error(after: bytes) -> None:
    found = find(data(error={"type": "insufficient_quota", "code": "insufficient_quota"}) + after)
    assert found is not None
    assert (found.ending, found.kind) == (Ending.OVERLOADED, Rejection.SPEND)


class Cut:
    """Answers with a stream that is cut into two pieces at this byte."""

    def __init__(self, stream: bytes, at: int) -> None:
        self._pieces = (stream[:at], stream[at:])

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        async def pieces() -> Any:
            for piece in self._pieces:
                yield piece

        headers = {"content-type": "text/event-stream"}
        return httpx2.Response(200, headers=headers, content=pieces(), request=request)


LAST = error(type="overloaded_error", message="Overloaded")


@pytest.mark.parametrize("profile", ["openai", "anthropic"])
@pytest.mark.parametrize("at", range(len(QUIET[0] + LAST) + 1))
async def test_it_counts_wherever_its_event_is_cut_and_its_bytes_pass_as_they_are(
    house: House, profile: str, at: int
) -> None:
    house.server.answer = Cut(QUIET[0] + LAST, at)
    vendor = house.vendor(profile=profile, quota=["600/min", "90000 tokens/min"])
    body = {"model": "m", "messages": MESSAGES, "stream": True}
    async with vendor.client.stream("POST", "/chat/completions", json=body) as answer:
        seen = b"".join([piece async for piece in answer.aiter_raw()])
    assert seen == QUIET[0] + LAST
    (called,) = house.sink.of(Called)
    assert called.ending == "overloaded"


async def test_an_error_in_an_answer_that_is_no_stream_is_an_answer(house: House) -> None:
    async def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=LAST, request=request)

    house.server.answer = answer
    await house.vendor().client.get("/x")
    assert house.sink.of(Called)[0].ending == "ok"


async def told(side: Side) -> Any:
    """What the SDK raises in the middle of a stream, and how much of it came first."""
    stream, words = await side.stream(), ""

    async def read() -> None:
        nonlocal words
        async for word in side.words(stream):
            words += word

    with pytest.raises(side.error("APIError")) as caught:
        await read()
    assert words
    assert " ".join(WORDS).startswith(words)
    return caught.value


@pytest.mark.parametrize(
    ("status", "ending", "pause"),
    [(0, "overloaded", True), (500, "failed", False), (400, "ok", False)],
)
@pytest.mark.parametrize("retries", [0, 2])
async def test_both_sdks_raise_it_and_it_counts_as_its_status_would(
    name: str, status: int, ending: str, pause: bool, retries: int
) -> None:
    """0 stands for the status by which the vendor says that it is overloaded."""
    status = status or (429 if name == "openai" else 529)
    side = Side(name, retries, faults={"error_after": 6, "fail_status": status, "latency": "const:2s"})
    raised = await told(side)
    assert "The server had an error" in str(raised)
    await side.house.reaper.drain(1)
    assert side.attempts == 1, "never tried again after the first byte"
    assert [called.ending for called in side.house.sink.of(Called)] == [ending]
    assert len(side.house.sink.of(Rejected)) == pause
    assert (side.vendor.statistics().shut_for > 0) is pause
    assert side.clean()


async def test_streams_that_fail_midway_open_the_breaker(name: str) -> None:
    side = Side(name, faults={"error_after": 6}, settings={"breaker": BREAKER})
    for _ in range(4):
        await told(side)
        await side.house.reaper.drain(1)
    assert side.vendor.statistics().shut_for == pytest.approx(30, abs=0.1)


async def test_streams_that_tell_of_wrong_requests_open_no_breaker(name: str) -> None:
    side = Side(name, faults={"error_after": 6, "fail_status": 400}, settings={"breaker": BREAKER})
    for _ in range(8):
        await told(side)
        await side.house.reaper.drain(1)
    assert side.vendor.statistics().shut_for == 0


async def test_a_slow_start_waits_for_streams_that_were_not_overloaded(name: str) -> None:
    """The probe's stream tells that the vendor is still overloaded: a new pause, and a new probe."""
    settings = {"quota": ["60000/min"], "queue_timeout": "60s"}
    side = Side(name, faults={"error_after": 6, "fail_status": 429}, settings=settings)
    await told(side)
    await side.house.reaper.drain(1)
    asking = [asyncio.create_task(side.stream()) for _ in range(5)]
    await asyncio.sleep(1.5)
    assert side.attempts == 2, "one call passes as a probe"
    (stream,) = [task.result() for task in asking if task.done()]
    with pytest.raises(side.error("APIError")):
        async for _ in stream:
            pass
    await side.house.reaper.drain(1)
    await asyncio.sleep(0.9)
    assert side.attempts == 2, "a second pause"
    await asyncio.sleep(0.7)
    assert side.attempts == 3
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)


def raw(side: Side) -> Any:
    """A stream as its bytes come."""
    body = {"model": "m", "messages": MESSAGES, "max_tokens": 24, "stream": True}
    path = "/chat/completions" if side.name == "openai" else "/v1/messages"
    return side.vendor.client.stream("POST", path, json=body)


async def test_an_error_seen_counts_though_the_caller_leaves(name: str) -> None:
    side = Side(name, faults={"error_after": 6, "fail_status": 500, "latency": "const:2s"})
    async with raw(side) as answer:
        async for piece in answer.aiter_raw():
            if b"The server had an error" in piece:
                break
    assert [called.ending for called in side.house.sink.of(Called)] == ["failed"]


async def test_a_stream_that_ends_with_an_error_is_settled_at_what_was_seen() -> None:
    """Of its output it said one token, at its start; the rest was text."""
    side = Side("anthropic", faults={"error_after": 18}, settings=TOKENS)
    async with raw(side) as answer:
        await answer.aread()
    (called,) = side.house.sink.of(Called)
    assert called.units > 10 + 5, "the prompt, and a quarter of the characters of fifteen words"
