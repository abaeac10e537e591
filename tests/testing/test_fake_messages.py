"""The fake vendor's Anthropic side: what the real SDK reads of it, and what its headers say."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from headworks.testing.fake_vendor import FakeVendor, Faults, InProcess, limit
from headworks.testing.fake_vendor.wire import WORDS

BODY: dict[str, Any] = {
    "model": "claude-fake",
    "max_tokens": 64,
    "messages": [{"role": "user", "content": "x" * 40}],
}
TOOL: Any = {"name": "search", "description": "finds", "input_schema": {"type": "object"}}


def sdk(vendor: FakeVendor) -> anthropic.AsyncAnthropic:
    own = httpx2.AsyncClient(transport=InProcess(vendor))
    return anthropic.AsyncAnthropic(
        base_url="http://vendor", api_key="k", http_client=own, max_retries=0
    )


async def test_the_sdk_reads_a_message() -> None:
    answer = await sdk(FakeVendor()).messages.create(**BODY | {"max_tokens": 5})
    assert answer.content[0].type == "text"
    assert answer.content[0].text == "Water behind the weir waits"
    assert answer.stop_reason == "max_tokens"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (10, 5)


async def test_the_sdk_reads_a_stream_and_its_usage_at_both_ends() -> None:
    vendor = FakeVendor(faults=Faults().changed({"latency": "const:3s"}))
    kinds, text = [], ""
    async for event in await sdk(vendor).messages.create(**BODY, stream=True):
        kinds.append(event.type)
        if event.type == "message_start":
            assert event.message.usage.input_tokens == 10
        if event.type == "content_block_delta" and event.delta.type == "text_delta":
            text += event.delta.text
        if event.type == "message_delta":
            assert event.usage.output_tokens == len(WORDS)
            assert event.delta.stop_reason == "end_turn"
    assert text == " ".join(WORDS)
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert asyncio.get_running_loop().time() == pytest.approx(1003)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_tool_is_called_until_its_result_is_told(streamed: bool) -> None:
    client = sdk(FakeVendor())

    async def ask(**body: Any) -> anthropic.types.Message:
        if not streamed:
            found: anthropic.types.Message = await client.messages.create(**body)
            return found
        async with client.messages.stream(**body) as stream:
            return await stream.get_final_message()

    answer = await ask(**BODY, tools=[TOOL])
    used = answer.content[0]
    assert answer.stop_reason == "tool_use"
    assert used.type == "tool_use"
    assert (used.name, used.input) == ("search", {"query": "weir"})
    result = {"type": "tool_result", "tool_use_id": used.id, "content": "found"}
    messages = [
        *BODY["messages"],
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [result]},
    ]
    second = await ask(**BODY | {"messages": messages}, tools=[TOOL])
    assert second.content[0].type == "text"


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_openai_side_calls_tools_too(streamed: bool) -> None:
    own = httpx2.AsyncClient(transport=InProcess(FakeVendor()))
    client = openai.AsyncOpenAI(base_url="http://vendor/v1", api_key="k", http_client=own)
    tools: Any = [{"type": "function", "function": {"name": "search", "parameters": {}}}]
    ask: dict[str, Any] = {"model": "m", "messages": BODY["messages"], "tools": tools}
    name, arguments, finish = "", "", None
    if streamed:
        async for chunk in await client.chat.completions.create(**ask, stream=True):
            finish = chunk.choices[0].finish_reason or finish
            for call in chunk.choices[0].delta.tool_calls or ():
                assert call.function is not None
                name += call.function.name or ""
                arguments += call.function.arguments or ""
    else:
        choice = (await client.chat.completions.create(**ask)).choices[0]
        finish = choice.finish_reason
        (called,) = choice.message.tool_calls
        name, arguments = called.function.name, called.function.arguments
    assert (name, arguments, finish) == ("search", '{"query":"weir"}', "tool_calls")


async def test_a_refusal_speaks_anthropics_language() -> None:
    client = sdk(FakeVendor([limit("60/min", burst=1), limit("40000 input tokens/min")]))
    first = await client.messages.with_raw_response.create(**BODY)
    assert first.headers["anthropic-ratelimit-requests-limit"] == "60"
    assert first.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert first.headers["anthropic-ratelimit-requests-reset"] == "1970-01-01T00:16:41Z"
    assert first.headers["anthropic-ratelimit-input-tokens-remaining"] == "40000", "told in thousands"
    with pytest.raises(anthropic.RateLimitError, match="60 requests per 60 s") as caught:
        await client.messages.create(**BODY)
    assert caught.value.body["error"]["type"] == "rate_limit_error"  # type: ignore[index]  # a JSON body
    assert caught.value.response.headers["retry-after"] == "1"


async def test_output_is_counted_as_generated_and_not_as_allowed() -> None:
    """Two calls of 24 words fit 60 output tokens, whatever `max_tokens` says; the third does not."""
    client = sdk(FakeVendor([limit("60 output tokens/min", mechanism="sliding")]))
    for _ in range(2):
        await client.messages.create(**BODY | {"max_tokens": 60_000 // 24})
    with pytest.raises(anthropic.RateLimitError):
        await client.messages.create(**BODY)


@pytest.mark.parametrize(
    ("status", "error"),
    [(429, anthropic.RateLimitError), (500, anthropic.InternalServerError), (529, anthropic.APIError)],
)
async def test_failures_have_the_status_that_is_asked_for(status: int, error: Any) -> None:
    vendor = FakeVendor(faults=Faults(fail_ratio=1.0, fail_status=status))
    with pytest.raises(error) as caught:
        await sdk(vendor).messages.create(**BODY)
    assert caught.value.status_code == status


@pytest.mark.parametrize("missing", ["model", "max_tokens", "messages"])
async def test_what_is_missing_is_named(missing: str) -> None:
    body = {name: value for name, value in BODY.items() if name != missing}
    async with httpx2.AsyncClient(transport=InProcess(FakeVendor()), base_url="http://v") as own:
        answer = await own.post("/v1/messages", json=body)
    assert answer.status_code == 400
    assert answer.json()["type"] == "error"
    assert missing in answer.json()["error"]["message"]
