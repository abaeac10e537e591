"""The fake vendor in process, in virtual time: its wire, its enforcement, its faults, its counts."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import openai
import pytest

from headworks.testing.fake_vendor import Delay, FakeVendor, Faults, InProcess, Limit, limit

BODY: dict[str, Any] = {"model": "gpt-fake", "messages": [{"role": "user", "content": "x" * 40}]}


def client(vendor: FakeVendor, **options: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=InProcess(vendor), base_url="http://vendor", **options)


def sdk(vendor: FakeVendor) -> openai.AsyncOpenAI:
    own = httpx2.AsyncClient(transport=InProcess(vendor))
    return openai.AsyncOpenAI(base_url="http://vendor/v1", api_key="k", http_client=own, max_retries=0)


async def stats(own: httpx2.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = (await own.get("/stats")).json()
    return found


def now() -> float:
    return asyncio.get_running_loop().time()


# The wire


async def test_the_sdk_reads_a_completion() -> None:
    answer = await sdk(FakeVendor()).chat.completions.create(**BODY, n=2, max_completion_tokens=5)
    assert answer.id.startswith("chatcmpl-")
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content == "Water behind the weir waits"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        10,
        10,
        20,
    )
    assert answer.created == 1000


async def test_the_sdk_reads_a_stream_with_usage_as_it_comes() -> None:
    """Chunks arrive one by one, spread over the latency; the usage stands in the last."""
    vendor = FakeVendor(faults=Faults(latency=Delay("const", 3.0)))
    stream = await sdk(vendor).chat.completions.create(
        **BODY, stream=True, stream_options={"include_usage": True}
    )
    text, times, usage, finish = "", list[float](), None, None
    async for chunk in stream:
        times.append(now())
        usage = chunk.usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    assert text.startswith("Water behind the weir")
    assert text.endswith("floods.")
    assert finish == "stop"
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens == 10 + 24
    assert len(set(times)) == len(times)
    assert now() == pytest.approx(1003)


async def test_a_stream_without_usage_ends_with_done() -> None:
    async with client(FakeVendor()) as own:
        answer = await own.post("/chat/completions", json=BODY | {"stream": True, "max_tokens": 1})
    events = [line for line in answer.text.split("\n\n") if line]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert events[-1] == "data: [DONE]"
    assert all("usage" not in json.loads(event[6:]) for event in events[:-1])


async def test_the_sdk_raises_its_rate_limit_error_with_the_vendors_headers() -> None:
    own = sdk(FakeVendor([limit("500/min", burst=1), limit("200000 tokens/min")]))
    first = await own.chat.completions.with_raw_response.create(**BODY, max_tokens=40)
    assert first.headers["x-ratelimit-limit-requests"] == "500"
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    assert first.headers["x-ratelimit-reset-requests"] == "120ms"
    assert first.headers["x-ratelimit-remaining-tokens"] == "199960"
    assert first.headers["x-ratelimit-reset-tokens"] == "12ms"
    with pytest.raises(openai.RateLimitError) as caught:
        await own.chat.completions.create(**BODY)
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.type == "requests"
    assert caught.value.response.headers["retry-after-ms"] == "120"
    assert caught.value.response.headers["retry-after"] == "1"
    assert "Please try again in 120ms" in str(caught.value)


async def test_models_and_search_are_served_with_and_without_prefix() -> None:
    vendor = FakeVendor(models=["a"])
    assert [model.id async for model in sdk(vendor).models.list()] == ["a"]
    async with client(vendor) as own:
        assert (await own.get("/models")).json()["object"] == "list"
        for answer in (
            await own.get("/search?q=weir"),
            await own.post("/v1/search", json={"q": "weir"}),
        ):
            assert answer.json()["results"][0]["title"].startswith("weir")
        assert (await own.get("/search")).status_code == 400


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"\xff", None),
        (json.dumps({"messages": BODY["messages"]}).encode(), "model"),
        (json.dumps({"model": "m"}).encode(), "messages"),
        (json.dumps({"model": "m", "messages": [1]}).encode(), "messages[0]"),
        (
            json.dumps({"model": "m", "messages": [{"role": "user", "content": 1}]}).encode(),
            "messages[0].content",
        ),
        (json.dumps(BODY | {"max_tokens": -1}).encode(), "max_tokens"),
        (json.dumps(BODY | {"max_tokens": True}).encode(), "max_tokens"),
        (json.dumps(BODY | {"n": 1000}).encode(), "n"),
        (json.dumps(BODY | {"stream": "yes"}).encode(), "stream"),
        (json.dumps(BODY | {"stream_options": 1}).encode(), "stream_options"),
    ],
)
async def test_a_malformed_body_is_a_400_that_costs_nothing(body: bytes, param: str | None) -> None:
    async with client(FakeVendor([limit("1/min")])) as own:
        answer = await own.post("/v1/chat/completions", content=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert answer.json()["error"]["param"] == param
        assert (await own.post("/v1/chat/completions", json=BODY)).status_code == 200


# Enforcement


@pytest.mark.parametrize(
    ("fields", "charge"),
    [
        ({}, 10),
        ({"max_tokens": 5}, 10),
        ({"max_tokens": 100}, 100),
        ({"max_completion_tokens": 100, "n": 3}, 300),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "abcde"}]}]}, 2),
    ],
)
async def test_tokens_are_charged_at_arrival(fields: dict[str, Any], charge: int) -> None:
    """n times the larger of max_tokens and a quarter of the characters."""
    async with client(FakeVendor([limit("1000 tokens/min")])) as own:
        answer = await own.post("/v1/chat/completions", json=BODY | fields)
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) == 1000 - charge


async def test_a_cost_that_never_fits_is_refused_without_a_time() -> None:
    async with client(FakeVendor([limit("1000 tokens/min")])) as own:
        answer = await own.post("/v1/chat/completions", json=BODY | {"max_tokens": 1001})
        assert answer.status_code == 429
        assert "retry-after" not in answer.headers
        assert "too large" in answer.json()["error"]["message"]


async def test_decisions_are_exact_under_a_thousand_concurrent_calls() -> None:
    """With jitter, latency and two limits at once."""
    faults = Faults(latency=Delay.parse("lognormal:0.8s:0.5"), arrival_jitter=Delay.parse("0:250ms"))
    vendor = FakeVendor(
        [limit("500/min", mechanism="sliding"), limit("1000000 tokens/min")], faults=faults
    )
    async with client(vendor) as own:
        answers = await asyncio.gather(
            *(own.post("/v1/chat/completions", json=BODY) for _ in range(1000))
        )
        codes = [answer.status_code for answer in answers]
        assert (codes.count(200), codes.count(429)) == (500, 500)
        found = await stats(own)
    assert (found["accepted"], found["rejected"]["requests"], found["in_flight"]) == (500, 500, 0)
    assert found["rejected"]["tokens"] == 0


@pytest.mark.parametrize("mechanism", ["bucket", "sliding"])
async def test_a_caller_that_keeps_the_pace_is_never_refused(mechanism: str) -> None:
    """Float time lands on the microsecond: one call every 120 ms against 500/min, burst 1."""
    vendor = FakeVendor([limit("500/min", mechanism=mechanism, burst=1)])
    async with client(vendor) as own:
        for _ in range(1500):
            assert (await own.get("/v1/search?q=x")).status_code == 200
            await asyncio.sleep(0.12)
        shares = (await stats(own))["utilisation"]["requests"]
    assert shares["of_rate"] == pytest.approx(1.0, abs=0.001)


async def test_the_decision_falls_after_the_arrival_jitter() -> None:
    """Two calls sent too close together are accepted when the network pulls them apart."""
    vendor = FakeVendor([limit("10/s", burst=1)], faults=Faults(arrival_jitter=Delay("const", 3.0)))

    async with client(vendor) as own:

        async def first() -> int:
            return (await own.get("/search?q=x")).status_code

        one = asyncio.create_task(first())
        await asyncio.sleep(0.05)
        vendor.faults = Faults(arrival_jitter=Delay("const", 3.05))
        two = asyncio.create_task(first())
        assert await one == await two == 200
        assert now() == pytest.approx(1003.1)


async def test_fixed_windows_follow_the_wall_clock() -> None:
    """Which is told to the vendor, and moves with the loop's."""
    vendor = FakeVendor([limit("1/min", mechanism="fixed")], wall=lambda: 1_700_000_039.0)
    async with client(vendor) as own:
        assert (await own.get("/search?q=x")).status_code == 200
        refused = await own.get("/search?q=x")
        assert refused.headers["retry-after"] == "1"
        await asyncio.sleep(1)
        assert (await own.get("/search?q=x")).status_code == 200


async def test_more_concurrent_calls_than_allowed_are_refused() -> None:
    vendor = FakeVendor(max_concurrency=3, faults=Faults(latency=Delay("const", 1.0)))
    async with client(vendor) as own:
        answers = await asyncio.gather(*(own.get("/search?q=x") for _ in range(5)))
        found = await stats(own)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 429, 429]
    assert found["rejected"]["concurrency"] == 2
    assert (found["in_flight"], found["highest_in_flight"]) == (0, 3)


async def test_input_and_output_tokens_are_charged_apart() -> None:
    """As vendors do that do not count max_tokens on the way in."""
    limits = [Limit("input_tokens", 100, 60_000_000), Limit("output_tokens", 100, 60_000_000)]
    async with client(FakeVendor(limits)) as own:
        answer = await own.post("/v1/chat/completions", json=BODY | {"max_tokens": 60})
        assert answer.headers["x-ratelimit-remaining-input_tokens"] == "90"
        assert answer.headers["x-ratelimit-remaining-output_tokens"] == "40"


# Faults


async def set_faults(own: httpx2.AsyncClient, **faults: object) -> None:
    answer = await own.post("/faults", json=faults)
    assert answer.status_code == 200, answer.text
    assert (await own.get("/faults")).json() == answer.json()


async def test_bad_faults_are_named_and_change_nothing() -> None:
    async with client(FakeVendor()) as own:
        before = (await own.get("/faults")).json()
        answer = await own.post("/faults", json={"hang": True, "fail_ratio": 7})
        assert answer.status_code == 400
        assert "fail_ratio: 7 must be a number from 0 to 1" in answer.json()["error"]["message"]
        assert (await own.post("/faults", content=b"nonsense")).status_code == 400
        assert (await own.get("/faults")).json() == before


async def test_injected_failures_are_counted_and_charged() -> None:
    async with client(FakeVendor()) as own:
        await set_faults(own, fail_ratio=0.5)
        answers = [await own.get("/search?q=x") for _ in range(200)]
        found = await stats(own)
    failed = sum(answer.status_code == 500 for answer in answers)
    assert 60 < failed < 140
    assert (found["accepted"], found["failed"]) == (200, failed)


async def test_a_hanging_call_is_held_until_its_client_leaves() -> None:
    async with client(FakeVendor(), timeout=5.0) as own:
        await set_faults(own, hang=True)
        call = asyncio.create_task(own.get("/search?q=x"))
        await asyncio.sleep(4.9)
        assert (await stats(own))["in_flight"] == 1
        with pytest.raises(httpx2.ReadTimeout):
            await call
        assert now() == 1005
        assert (await stats(own))["in_flight"] == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_dropped_connection_breaks_off_in_the_middle(stream: bool) -> None:
    async with client(FakeVendor()) as own:
        await set_faults(own, disconnect=3)
        body = BODY | {"stream": stream}
        async with own.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            with pytest.raises(httpx2.RemoteProtocolError):
                await answer.aread()
        found = await stats(own)
    assert (found["in_flight"], found["streams_closed_early"]) == (0, 0)


async def test_a_stream_its_reader_leaves_is_counted_and_ended() -> None:
    vendor = FakeVendor(faults=Faults(latency=Delay("const", 10.0)))
    async with client(vendor) as own:
        async with own.stream("POST", "/v1/chat/completions", json=BODY | {"stream": True}) as answer:
            async for _ in answer.aiter_raw():
                break
            assert (await stats(own))["in_flight"] == 1
        found = await stats(own)
    assert (found["in_flight"], found["streams_closed_early"]) == (0, 1)


async def test_a_cancelled_caller_leaves_nothing_in_flight() -> None:
    """Whether it waits for the answer's beginning, or reads a stream through httpx2's own transport."""
    vendor = FakeVendor(faults=Faults(latency=Delay("const", 10.0)))
    plain = httpx2.AsyncClient(transport=httpx2.ASGITransport(vendor), base_url="http://vendor")
    async with client(vendor) as own, plain:
        for caller in (own, plain):
            for stream in (False, True):
                body = BODY | {"stream": stream}
                call = asyncio.create_task(caller.post("/v1/chat/completions", json=body))
                await asyncio.sleep(1)
                assert vendor.ledger.in_flight == 1
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
                assert vendor.ledger.in_flight == 0
    assert vendor.ledger.streams_closed_early == 2


async def test_an_application_that_breaks_shows_why() -> None:
    """The client sees what a socket would show; the cause is chained for whoever debugs."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("bug")

    async with httpx2.AsyncClient(transport=InProcess(broken), base_url="http://vendor") as own:
        with pytest.raises(httpx2.RemoteProtocolError) as caught:
            await own.get("/")
    assert isinstance(caught.value.__cause__, KeyError)


# Counts


async def test_the_series_counts_accepted_calls_by_the_second() -> None:
    async with client(FakeVendor()) as own:
        await asyncio.sleep(3.3)
        for pause in (0.0, 0.5, 0.5, 2.0, 3.0):
            await asyncio.sleep(pause)
            await own.get("/search?q=x")
        found = await stats(own)
        assert found["series"] == [2, 1, 0, 1, 0, 0, 1]
        assert found["seconds"] == 6.0
        assert found["accepted_per_second"] == pytest.approx(5 / 7, abs=0.001)


async def test_a_reset_forgets_counts_but_not_limits() -> None:
    """Calls in flight stay in flight, and what is used stays used."""
    vendor = FakeVendor(
        [limit("2/min", mechanism="sliding")], faults=Faults(latency=Delay("const", 3.0))
    )
    async with client(vendor) as own:
        call = asyncio.create_task(own.get("/search?q=x"))
        await asyncio.sleep(1)
        found = (await own.post("/stats/reset")).json()
        assert (found["accepted"], found["in_flight"], found["highest_in_flight"]) == (0, 1, 1)
        assert found["series"] == []
        await call
        assert (await own.get("/search?q=x")).status_code == 200
        assert (await own.get("/search?q=x")).status_code == 429
        found = await stats(own)
    assert (found["accepted"], found["in_flight"]) == (1, 0)


async def test_utilisation_is_told_against_the_mechanism_and_against_the_rate() -> None:
    vendor = FakeVendor([limit("60/min", mechanism="bucket", burst=10)])
    async with client(vendor) as own:
        for _ in range(20):
            await own.get("/search?q=x")
            await asyncio.sleep(2)
        found = (await stats(own))["utilisation"]["requests"]
    assert found == {"accepted": 20, "allowed": 50, "utilisation": 0.4, "of_rate": 0.5}
