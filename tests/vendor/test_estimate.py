"""What a call will cost, and what it did cost."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headworks.policy.profiles import Profile, profile_named
from headworks.vendor.estimate import Estimate, Outputs, json_of
from headworks.vendor.estimate import estimate as estimate_of
from headworks.vendor.usage import KEPT, UsageReader

OPENAI = profile_named("openai")
ANTHROPIC = profile_named("anthropic")


def estimate(content: bytes, profile: Profile = OPENAI, outputs: Outputs | None = None) -> Estimate:
    return asyncio.run(estimate_of(json_of(content), profile.charges, outputs or Outputs()))


def reading(profile: Profile = OPENAI, encoding: str = "") -> UsageReader:
    return UsageReader(profile.usage, encoding)


def chat(**extra: object) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * 400}], **extra}
    return json.dumps(body).encode()


def test_the_larger_of_ceiling_and_text_is_charged() -> None:
    assert estimate(chat()).tokens == 100
    assert estimate(chat(max_tokens=50)).tokens == 100
    assert estimate(chat(max_completion_tokens=700)).tokens == 700


def test_choices_multiply_the_charge() -> None:
    assert estimate(chat(max_tokens=700, n=3)).tokens == 2100


def test_text_is_found_in_parts_and_roles_are_not_charged() -> None:
    parts = [{"type": "text", "text": "y" * 40}, {"type": "image_url", "image_url": {"url": "z" * 9999}}]
    body = json.dumps({"messages": [{"role": "user", "content": parts}]}).encode()
    assert estimate(body).tokens == 10


@pytest.mark.parametrize(
    "content", [b"", b"not json", b"[1,2]", b'"text"', b"null", b'{"max_tokens": "many", "n": true}']
)
def test_a_body_that_says_nothing_costs_a_request_and_no_tokens(content: bytes) -> None:
    cost = estimate(content).cost()
    assert cost["requests"] == 1
    assert cost["tokens"] == 0


@pytest.mark.parametrize("profile", [OPENAI, ANTHROPIC, profile_named("generic")])
@pytest.mark.parametrize("huge", [10**9, 10**308, 10**400, 10**4000])
def test_a_number_beyond_reason_costs_no_more_than_any_call_can(profile: Profile, huge: int) -> None:
    """Callers name it, in the body: line and quota compute with what is estimated."""
    found = estimate(chat(max_tokens=huge, n=huge), profile)
    assert all(0 <= units <= 10**9 for units in found.cost().values())


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(
        lambda v: json.dumps({"messages": v, "max_tokens": v, "n": v, "model": v}).encode()
    )
)
def test_no_body_can_make_the_estimate_fail(content: bytes) -> None:
    found = estimate(content)
    assert found.tokens >= 0


USAGE = {"prompt_tokens": 12, "completion_tokens": 30, "total_tokens": 42}
SAID = {"tokens": 42, "input_tokens": 12, "output_tokens": 30}


def test_usage_is_read_from_a_json_answer_in_pieces() -> None:
    reader = reading()
    content = json.dumps({"choices": ["c" * 3 * KEPT], "usage": USAGE}).encode()
    for start in range(0, len(content), 7):
        reader.feed(content[start : start + 7])
    assert reader.usage() == SAID


def test_usage_is_read_from_the_last_event_of_a_stream() -> None:
    reader = reading()
    for _ in range(500):
        reader.feed(b'data: {"choices":[{"delta":{"content":"word"}}],"usage":null}\n\n')
    reader.feed(f"data: {json.dumps({'choices': [], 'usage': USAGE})}\n\ndata: [DONE]\n\n".encode())
    assert reader.usage() == SAID


def test_usage_is_read_through_gzip() -> None:
    reader = reading(encoding="gzip")
    reader.feed(gzip.compress(json.dumps({"usage": USAGE}).encode()))
    assert reader.usage() == SAID


def test_usage_told_at_both_ends_of_a_stream_is_put_together() -> None:
    """Anthropic tells the input first and the output last."""
    reader = reading(ANTHROPIC)
    reader.feed(
        b'data: {"type":"message_start","message":{"usage":{"input_tokens":12,"output_tokens":1}}}\n\n'
    )
    reader.feed(b"data: {}\n\n" * 2 * KEPT)
    reader.feed(b'data: {"type":"message_delta","usage":{"output_tokens":30}}\n\n')
    assert reader.usage() == SAID


def test_an_answer_without_usage_says_nothing() -> None:
    reader = reading()
    reader.feed(b'{"choices": []}')
    assert reader.usage() == {}
