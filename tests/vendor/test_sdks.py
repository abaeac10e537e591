"""Unmodified SDKs: one attempt for a refusal, streams that give their slot back, no other origin."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from headworks.errors import CallTimeout, Refused, VendorFailed, VendorQuota
from headworks.fairness.translate import refused_behind
from headworks.vendor import REFUSED, Vendor

MESSAGES: Any = [{"role": "user", "content": "hi"}]


def openai_of(vendor: Vendor, **options: Any) -> openai.AsyncOpenAI:
    settings = {"base_url": vendor.base_url, "api_key": "k", "max_retries": 0} | options
    return openai.AsyncOpenAI(http_client=vendor.client, **settings)


async def completion(request: httpx2.Request) -> httpx2.Response:
    message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [message]}
    return httpx2.Response(200, json=body | {"usage": usage}, request=request)


class Events(httpx2.AsyncByteStream):
    """Server-sent events, one every tenth of a second; remembers whether it was closed."""

    def __init__(self, count: int = 5) -> None:
        self.count, self.sent, self.closed = count, 0, False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for number in range(self.count):
            await asyncio.sleep(0.1)
            delta = {"choices": [{"index": 0, "delta": {"content": str(number)}}]}
            chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", **delta}
            self.sent += 1
            yield f"data: {json.dumps(chunk)}\n\n".encode()
        yield b"data: [DONE]\n\n"

    async def aclose(self) -> None:
        self.closed = True


def streaming(events: Events) -> Any:
    async def answer(request: httpx2.Request) -> httpx2.Response:
        headers = {"content-type": "text/event-stream"}
        return httpx2.Response(200, headers=headers, stream=events, request=request)

    return answer


async def test_the_openai_sdk_completes_through_the_pipeline(house: Any) -> None:
    house.server.answer = completion
    client = openai_of(house.vendor())
    answer = await client.chat.completions.create(model="m", messages=MESSAGES)
    assert answer.choices[0].message.content == "hello"


@pytest.mark.parametrize("retries", [0, 2])
async def test_a_refusal_surfaces_after_one_attempt_even_with_the_sdks_retries_on(
    house: Any, retries: int
) -> None:
    house.server.answer = completion
    vendor = house.vendor(quota=["1/min"])
    client = openai_of(vendor, max_retries=retries)
    await client.chat.completions.create(model="m", messages=MESSAGES)
    start = asyncio.get_running_loop().time()
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(model="m", messages=MESSAGES)
    assert asyncio.get_running_loop().time() - start < 0.1
    assert isinstance(caught.value.response.extensions[REFUSED], VendorQuota)
    assert len(house.server.arrivals) == 1


async def test_the_anthropic_sdk_surfaces_a_refusal_after_one_attempt(house: Any) -> None:
    vendor = house.vendor(profile="anthropic", quota=["1/min"])
    client = anthropic.AsyncAnthropic(base_url=vendor.base_url, http_client=vendor.client, api_key="k")
    await vendor.client.post("/warm", json={})
    with pytest.raises(anthropic.RateLimitError) as caught:
        await client.messages.create(model="m", max_tokens=5, messages=MESSAGES)
    assert isinstance(caught.value.response.extensions[REFUSED], VendorQuota)
    assert len(house.server.arrivals) == 1


async def test_a_failing_vendors_error_carries_our_refusal_for_translation(house: Any) -> None:
    async def fail(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(500, json={"error": {"message": "broken"}}, request=request)

    house.server.answer = fail
    with pytest.raises(openai.InternalServerError) as caught:
        await openai_of(house.vendor(), max_retries=2).chat.completions.create(
            model="m", messages=MESSAGES
        )
    assert isinstance(caught.value.response.extensions[REFUSED], VendorFailed)
    assert len(house.server.arrivals) == 1, "our retries are spent, the SDK's would multiply them"


async def test_a_stream_holds_its_slot_to_the_last_event(house: Any) -> None:
    events = Events()
    house.server.answer = streaming(events)
    vendor = house.vendor()
    stream = await openai_of(vendor).chat.completions.create(model="m", messages=MESSAGES, stream=True)
    assert vendor.statistics().in_flight == 1
    words = [chunk.choices[0].delta.content async for chunk in stream]
    assert words == ["0", "1", "2", "3", "4"]
    assert vendor.statistics().in_flight == 0
    assert events.closed


async def test_a_stream_left_early_gives_its_slot_back_on_close(house: Any) -> None:
    events = Events(100)
    house.server.answer = streaming(events)
    vendor = house.vendor()
    async with await openai_of(vendor).chat.completions.create(
        model="m", messages=MESSAGES, stream=True
    ) as stream:
        async for _ in stream:
            break
    assert vendor.statistics().in_flight == 0
    assert events.closed
    assert events.sent < 10


async def test_a_cancelled_stream_gives_its_slot_back(house: Any) -> None:
    events = Events(100)
    house.server.answer = streaming(events)
    vendor = house.vendor()

    async def read() -> None:
        stream = await openai_of(vendor).chat.completions.create(
            model="m", messages=MESSAGES, stream=True
        )
        async for _ in stream:
            pass

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.55)
    assert vendor.statistics().in_flight == 1
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert vendor.statistics().in_flight == 0


async def test_a_stream_that_falls_silent_is_cut_off(house: Any) -> None:
    class Silent(Events):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"data: {}\n\n"
            await asyncio.sleep(3600)

    house.server.answer = streaming(Silent())
    vendor = house.vendor(call_timeout="3s", timeouts={"read": "3s"})
    async with vendor.client.stream("POST", "/chat/completions", json={}) as response:
        with pytest.raises(httpx2.ReadTimeout):
            async for _ in response.aiter_bytes():
                pass
    assert vendor.statistics().in_flight == 0


class Breaking(Events):
    """Breaks off, or falls silent, after its first piece."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self._error = error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b'{"id": '
        if self._error is not None:
            raise self._error
        await asyncio.sleep(3600)


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        (httpx2.RemoteProtocolError("peer closed connection"), VendorFailed),
        (httpx2.ReadError("reset"), VendorFailed),
        (None, CallTimeout),
        (RuntimeError("a bug"), None),
    ],
)
async def test_an_answer_that_breaks_off_in_its_body_is_a_refusal_and_no_500(
    house: Any, error: Exception | None, refusal: type[Refused] | None
) -> None:
    """Of the vendor's failures, that is: what an SDK or httpx2 raises leads to it."""
    vendor = house.vendor(call_timeout="3s", timeouts={"read": "3s"})

    async def answer(request: httpx2.Request) -> httpx2.Response:
        headers = {"content-type": "application/json"}
        return httpx2.Response(200, headers=headers, stream=Breaking(error), request=request)

    house.server.answer = answer
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: vendor.client.post("/chat/completions", json={}),
        lambda: openai_of(vendor).chat.completions.create(model="m", messages=MESSAGES),
    ]
    for call in calls:
        with pytest.raises(Exception, match=r".") as raised:
            await call()
        behind = refused_behind(raised.value)
        assert type(behind) is (refusal or type(None))
        assert refusal is not VendorFailed or "vendor 'llm'" in str(behind)
    assert vendor.statistics().in_flight == 0
    assert len(house.server.requests) == 2


async def test_an_sdk_left_on_the_public_address_is_told_both_origins(house: Any) -> None:
    client = openai.AsyncOpenAI(api_key="k", http_client=house.vendor().client, max_retries=0)
    with pytest.raises(Exception, match=r"https://api\.openai\.com:443.*https://vendor\.example"):
        await client.chat.completions.create(model="m", messages=MESSAGES)
    assert not house.server.arrivals


async def test_the_stricter_timeout_wins(house: Any) -> None:
    vendor = house.vendor(timeouts={"read": "7s", "connect": "2s"})
    await vendor.client.post("/a", json={}, timeout=httpx2.Timeout(1.0))
    await vendor.client.post("/a", json={}, timeout=httpx2.Timeout(600.0))
    seen = [request.extensions["timeout"] for request in house.server.requests]
    assert [timeouts["read"] for timeouts in seen] == [1.0, 7.0]
    assert [timeouts["connect"] for timeouts in seen] == [1.0, 2.0]
