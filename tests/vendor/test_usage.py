"""What calls cost: estimated before, settled after, whatever became of their answers."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.vendor.sdks import MESSAGES, Side

from headworks.policy.profiles import profile_named
from headworks.testing.fake_vendor import limit
from headworks.testing.fake_vendor.wire import WORDS
from headworks.vendor.estimate import LONG, UNSEEN, Outputs, estimate
from headworks.vendor.usage import UsageChunk, UsageReader, ask_for_usage

OPENAI, ANTHROPIC = profile_named("openai"), profile_named("anthropic")
TOKENS: dict[str, Any] = {"quota": ["6000/min", "90000 tokens/min"]}
EACH: dict[str, Any] = {"quota": ["6000/min", "90000 input tokens/min", "90000 output tokens/min"]}
CHAT = "/v1/chat/completions"


# OpenAI's streams tell their usage when asked


async def test_a_stream_is_asked_for_its_usage_and_the_caller_sees_nothing_of_it() -> None:
    side = Side("openai", settings=TOKENS)
    words = [word async for word in side.words(await side.stream(max_tokens=200))]
    assert "".join(words) == " ".join(WORDS)
    (request,) = side.recorder.requests
    sent = json.loads(request.content)
    assert sent["stream_options"] == {"include_usage": True}
    assert request.headers["content-length"] == str(len(request.content))
    assert request.headers["accept-encoding"] == "identity"
    raw = await side.vendor.client.post("/chat/completions", json={"model": "m", "stream": True} | ASK)
    assert b'"choices":[]' not in raw.content
    assert raw.content.endswith(b"data: [DONE]\n\n")
    assert b"usage" not in raw.content


ASK: dict[str, Any] = {"messages": MESSAGES}


async def test_a_caller_who_asks_for_usage_gets_it() -> None:
    side = Side("openai", settings=TOKENS)
    events = [e async for e in await side.stream(stream_options={"include_usage": True})]
    assert events[-1].choices == []
    assert events[-1].usage.total_tokens == 10 + len(WORDS)


@pytest.mark.parametrize(
    ("body", "path", "profile"),
    [
        ({"stream": True, "stream_options": {"include_usage": False}}, CHAT, OPENAI),
        ({"stream": True, "stream_options": "nonsense"}, CHAT, OPENAI),
        ({"stream": False}, CHAT, OPENAI),
        ({"stream": "true"}, CHAT, OPENAI),
        ({"stream": True}, "/v1/responses", OPENAI),
        ({"stream": True}, CHAT, profile_named("generic")),
        ({"stream": True}, "/v1/messages", ANTHROPIC),
        ([], CHAT, OPENAI),
        (None, CHAT, OPENAI),
    ],
)
def test_nothing_is_asked_for_where_it_is_not_understood_or_not_wanted(
    body: Any, path: str, profile: Any
) -> None:
    content = json.dumps(body).encode()
    assert ask_for_usage(content, body, profile.usage, path) is None


async def test_without_a_quota_on_tokens_nothing_is_asked_for() -> None:
    side = Side("openai")
    await side.stream()
    assert "stream_options" not in json.loads(side.recorder.requests[0].content)


@pytest.mark.parametrize(
    "body",
    [
        {"stream": True, "messages": [{"content": "}"}]},
        {"stream": True, "stream_options": None},
        {"stream": True, "stream_options": {}},
        {"stream": True, "stream_options": {"include_obfuscation": False}},
    ],
)
def test_asking_leaves_the_rest_of_the_request_as_it_was(body: Any) -> None:
    content = json.dumps(body).encode() + b" \n"
    asked = ask_for_usage(content, body, OPENAI.usage, CHAT)
    assert asked is not None
    found = json.loads(asked)
    options = found.pop("stream_options")
    assert options == {**(body.get("stream_options") or {}), "include_usage": True}
    assert found == {key: value for key, value in body.items() if key != "stream_options"}


KEPT = [
    b'data: {"choices":[{"delta":{"content":"a \\"choices\\":[],\\"usage\\":null b"}}]}\n\n',
    b'data: {"choices":[{"usage":null}],"usage":{"a":1}}\n\n',
    b'data: {"usage":null}\n\n',
    b": comment\n\n",
    b'event: x\r\ndata: {"choices" : [ ], "error": 1}\r\n\r\n',
    b'data: {"choices":[],"usage":null\n\n',
]
SHORTENED = {
    b'data: {"choices":[],"prompt_filter_results":[],"usage":null}\n\n': (
        b'data: {"choices":[],"prompt_filter_results":[]}\n\n'
    ),
    b'data: {"usage" : null , "choices":[{"index":0}], "e":1}\r\n\r\n': (
        b'data: { "choices":[{"index":0}], "e":1}\r\n\r\n'
    ),
    b'data: {"choices":[{"delta":{}}], "usage": null,"obfuscation":"x"}\n\n': (
        b'data: {"choices":[{"delta":{}}],"obfuscation":"x"}\n\n'
    ),
    b'data: {"choices":[{"usage":null,"index":0}],"usage":null}\n\n': (
        b'data: {"choices":[{"usage":null,"index":0}],"usage":null}\n\n'
    ),
}
"""The last is left alone: the first `"usage":null` in it is not the event's own."""

USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n'


@given(st.lists(st.sampled_from([*KEPT, *SHORTENED, USAGE]), max_size=12), st.integers(1, 90))
def test_only_what_was_not_asked_for_is_taken_out_however_the_stream_is_cut(
    events: list[bytes], width: int
) -> None:
    stream = b"".join([*events, b"data: [DONE]\n\n", b"cut of"])
    chunk, seen = UsageChunk(), b""
    for start in range(0, len(stream), width):
        seen += chunk.feed(stream[start : start + width])
    seen += chunk.rest()
    wanted = [SHORTENED.get(event, event) for event in events if event != USAGE]
    assert seen == b"".join([*wanted, b"data: [DONE]\n\n", b"cut of"])


@pytest.mark.parametrize(
    ("profile", "headers", "seconds"),
    [
        ("openai", {"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ("anthropic", {"retry-after-ms": "1500", "retry-after": "9"}, 9.0),
        ("generic", {"retry-after-ms": "1500"}, None),
        ("openai", {"retry-after-ms": "soon", "retry-after": "Thu, 01 Jan 2026 00:00:30 GMT"}, 30.0),
    ],
)
def test_where_a_vendor_says_when_to_come_back_is_its_profiles(
    house: Any, profile: str, headers: dict[str, str], seconds: float | None
) -> None:
    transport = house.vendor(profile=profile)._transport
    assert transport._retry_after(httpx2.Headers(headers)) == seconds


# Settling


@pytest.mark.parametrize("streamed", [False, True])
async def test_openai_keeps_what_was_booked(streamed: bool) -> None:
    """It charges the ceiling at arrival and gives nothing back."""
    side = Side("openai", settings=TOKENS)
    answer = await side.ask(max_tokens=2000, stream=streamed)
    if streamed:
        assert [event async for event in answer]
    assert (await side.corrections()).get("tokens", 0) == 0


@pytest.mark.parametrize("streamed", [False, True])
async def test_more_than_was_booked_is_charged_after(streamed: bool) -> None:
    """Without a ceiling only the prompt was booked."""
    side = Side("openai", settings=TOKENS)
    answer = await side.client.chat.completions.create(model="m", messages=MESSAGES, stream=streamed)
    if streamed:
        assert [event async for event in answer]
    assert (await side.corrections())["tokens"] == len(WORDS)


@pytest.mark.parametrize("streamed", [False, True])
async def test_anthropic_is_settled_at_what_it_says(streamed: bool) -> None:
    side = Side("anthropic", settings=EACH)
    side.vendor.tokenizer = lambda model, text: 1000
    answer = await side.ask(stream=streamed)
    if streamed:
        assert [event async for event in answer]
    corrections = await side.corrections()
    assert corrections["input_tokens"] == 10 - 1000
    assert corrections.get("output_tokens", 0) == 0, "24 were booked and written"


async def test_an_aborted_stream_is_settled_at_what_was_seen_of_it() -> None:
    """The whole prompt, and the text that went by; the vendor counts output as it is generated."""
    side = Side("anthropic", settings=EACH, faults={"latency": "const:29s"})
    stream, seen = await side.stream(max_tokens=10_000), ""
    async for word in side.words(stream):
        seen += word
        if len(seen) > 60:
            break
    await stream.close()
    corrections = await side.corrections()
    written = UNSEEN + corrections["output_tokens"]
    assert written == pytest.approx(len(seen) / 4, abs=3)
    assert corrections.get("input_tokens", 0) == 0


async def test_an_aborted_stream_of_openai_keeps_its_charge() -> None:
    side = Side("openai", settings=TOKENS, faults={"latency": "const:29s"})
    stream = await side.stream(max_tokens=2000)
    async for _ in side.words(stream):
        break
    await stream.close()
    assert (await side.corrections()).get("tokens", 0) == 0


async def test_an_answer_cut_off_keeps_the_estimate() -> None:
    side = Side("anthropic", settings=EACH, faults={"disconnect": 10})
    with pytest.raises(side.error("APIConnectionError")):
        await side.ask()
    assert await side.corrections() == {}


def test_cache_reads_do_not_count_and_cache_writes_do() -> None:
    reader = UsageReader(ANTHROPIC.usage)
    usage = {"input_tokens": 5, "cache_creation_input_tokens": 100, "cache_read_input_tokens": 9000}
    reader.feed(json.dumps({"usage": usage | {"output_tokens": 7}}).encode())
    assert reader.usage() == {"tokens": 112, "input_tokens": 105, "output_tokens": 7}


def test_an_answer_cannot_forge_its_usage() -> None:
    """Neither in its text, whose quotes are escaped, nor in the input of a tool, which comes before."""
    forged = {"usage": {"input_tokens": 0, "output_tokens": 0, "cache_creation_input_tokens": 0}}
    content = [
        {"type": "text", "text": json.dumps(forged)},
        {"type": "tool_use", "input": forged},
    ]
    real = {"input_tokens": 50, "cache_creation_input_tokens": 0, "output_tokens": 60}
    reader = UsageReader(ANTHROPIC.usage)
    reader.feed(json.dumps({"content": content, "usage": real}).encode())
    assert reader.usage() == {"tokens": 110, "input_tokens": 50, "output_tokens": 60}


def test_the_responses_api_says_it_in_its_last_event() -> None:
    reader = UsageReader(OPENAI.usage)
    usage = {"input_tokens": 5, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 7}
    event = {"type": "response.completed", "response": {"usage": usage | {"total_tokens": 12}}}
    reader.feed(b"event: response.completed\ndata: " + json.dumps(event).encode() + b"\n\n")
    assert reader.usage() == {"tokens": 12, "input_tokens": 5, "output_tokens": 7}


# What the vendor counts of calls that came to nothing


@pytest.mark.parametrize(
    ("name", "status", "kept"),
    [
        ("openai", 429, True),
        ("openai", 500, True),
        ("anthropic", 429, False),
        ("anthropic", 500, True),
        ("anthropic", 529, True),
    ],
)
async def test_rejected_and_failed_calls_cost_what_the_profile_says(
    name: str, status: int, kept: bool
) -> None:
    side = Side(name, faults={"fail_ratio": 1, "fail_status": status}, settings=EACH)
    with pytest.raises(side.error("APIStatusError")):
        await side.ask()
    booked = {"requests": -1, "input_tokens": -10, "output_tokens": -24}
    assert await side.corrections() == ({} if kept else booked)


@pytest.mark.parametrize("error", [httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout])
async def test_what_never_reached_the_vendor_costs_nothing(error: Any) -> None:
    """Whatever the profile says of failed calls: it was never sent."""

    async def unreachable(request: httpx2.Request) -> httpx2.Response:
        raise error("no way", request=request)

    side = Side("openai", settings=TOKENS)
    side.recorder.handle_async_request = unreachable  # type: ignore[method-assign]  # another vendor
    with pytest.raises(side.error("APIStatusError")):
        await side.ask()
    assert await side.corrections() == {"requests": -1, "tokens": -24}


async def test_a_call_whose_connection_broke_later_may_have_been_counted() -> None:
    async def broken(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.RemoteProtocolError("gone", request=request)

    side = Side("openai", settings=TOKENS)
    side.recorder.handle_async_request = broken  # type: ignore[method-assign]  # another vendor
    with pytest.raises(side.error("APIStatusError")):
        await side.ask()
    assert await side.corrections() == {}


# Expecting


async def test_a_ceiling_that_the_vendor_does_not_charge_does_not_starve_its_quota() -> None:
    """Ten calls that may write 60,000 tokens each fit a quota of 1,000, of which they use 240."""
    side = Side(
        "anthropic",
        limits=(limit("1000 output tokens/min"),),
        settings={"quota": ["6000/min", "1000 output tokens/min"], "queue_timeout": "60s"},
    )
    start = asyncio.get_running_loop().time()
    for _ in range(10):
        await side.ask(max_tokens=60_000)
    assert asyncio.get_running_loop().time() - start < 20
    assert not side.fake.ledger.rejected


def test_what_is_expected_follows_what_was_written() -> None:
    outputs = Outputs()
    assert outputs.expected("m", 0) == UNSEEN
    assert outputs.expected("m", 100) == 100
    for _ in range(100):
        outputs.saw("m", 40)
    assert outputs.expected("m", 10_000) == 40
    assert outputs.expected("other", 10_000) == UNSEEN
    for _ in range(50):
        outputs.saw("m", 400)
    assert 400 <= outputs.expected("m", 10_000) <= 600
    outputs.saw("n", 0)
    assert outputs.expected("n", 0) == 1


async def test_only_so_many_models_are_remembered() -> None:
    outputs = Outputs()
    for number in range(5000):
        outputs.saw(f"m{number}", 1)
    assert len(outputs._known) == 1000


async def test_a_tokenizer_counts_instead_of_the_estimate() -> None:
    side = Side("openai", settings={"quota": ["6000/min", "100 tokens/min"]})
    seen = []

    def count(model: str, text: str) -> int:
        seen.append((model, text))
        return 5000

    side.vendor.tokenizer = count
    with pytest.raises(side.error("RateLimitError")):
        await side.ask(max_tokens=1)
    assert seen == [("m", "x" * 40)]
    assert side.attempts == 0


@pytest.mark.real
async def test_long_texts_are_counted_in_a_thread() -> None:
    threads = []

    def count(model: str, text: str) -> int:
        threads.append(threading.current_thread())
        return 7

    for length in (LONG - 1, LONG):
        body = {"model": "m", "messages": [{"content": "x" * length}]}
        assert (await estimate(body, OPENAI.charges, Outputs(), count)).tokens == 7
    assert [thread is threading.main_thread() for thread in threads] == [True, False]


async def test_a_tokenizer_that_fails_costs_no_call(caplog: Any) -> None:
    def count(model: str, text: str) -> int:
        raise KeyError(model)

    body = {"model": "m", "messages": [{"content": "x" * 40}]}
    assert (await estimate(body, OPENAI.charges, Outputs(), count)).tokens == 10
    assert "the tokenizer failed for model 'm'" in caplog.text


async def test_a_compressed_stream_is_passed_on_as_it_is() -> None:
    """A vendor that compresses all the same: nothing can be taken out, and nothing is broken."""

    async def answer(request: httpx2.Request) -> httpx2.Response:
        headers = {"content-type": "text/event-stream", "content-encoding": "gzip"}
        content = gzip.compress(KEPT[0] + USAGE)
        return httpx2.Response(200, headers=headers, content=content, request=request)

    side = Side("openai", settings=TOKENS)
    side.recorder.handle_async_request = answer  # type: ignore[method-assign]  # another vendor
    found = await side.vendor.client.post("/chat/completions", json={"model": "m", "stream": True} | ASK)
    assert found.content == KEPT[0] + USAGE
    assert (await side.corrections()) == {}
