"""Anthropic's messages format: parse, answer, stream, refuse.

Charge, at arrival: ⌈characters / 4⌉ input tokens (at least 1) of system and message texts, and as many
output tokens as will be answered, one a word: the vendor counts them as they are generated, and
`max_tokens` does not count. A limit on plain tokens is charged both.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from headworks.testing.fake_vendor.judge import INPUT_TOKENS, OUTPUT_TOKENS, REQUESTS, TOKENS, Ruling
from headworks.testing.fake_vendor.wire import (
    ARGUMENTS,
    WORDS,
    BadRequest,
    characters,
    count,
    event,
    json_object,
    tool_to_call,
)

ROUNDED = 1000
"""Remaining tokens are told in thousands."""

KINDS = {
    400: "invalid_request_error",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class MessageCall:
    """A message as asked for; `tool` is the one that will be called, empty for none."""

    model: str
    characters: int
    max_tokens: int
    stream: bool
    tool: str

    @property
    def words(self) -> tuple[str, ...]:
        return (ARGUMENTS,) if self.tool else WORDS[: self.max_tokens]

    @property
    def input_tokens(self) -> int:
        return max(1, -(-self.characters // 4))

    @property
    def costs(self) -> dict[str, int]:
        read, written = self.input_tokens, len(self.words)
        return {REQUESTS: 1, TOKENS: read + written, INPUT_TOKENS: read, OUTPUT_TOKENS: written}

    @property
    def stop_reason(self) -> str:
        if self.tool:
            return "tool_use"
        return "end_turn" if len(self.words) == len(WORDS) else "max_tokens"

    def usage(self, output_tokens: int) -> dict[str, Any]:
        return {
            "input_tokens": self.input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": output_tokens,
            "service_tier": "standard",
        }


def parse(body: bytes) -> MessageCall:
    """The call a body asks for. Raises `BadRequest` naming the parameter that is wrong."""
    asked = json_object(body)
    model = asked.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("model: Field required", "model")
    stream = asked.get("stream") or False
    if not isinstance(stream, bool):
        raise BadRequest("stream: Input should be a valid boolean", "stream")
    most = count(asked, "max_tokens", 10_000_000)
    if most is None:
        raise BadRequest("max_tokens: Field required", "max_tokens")
    messages, system = asked.get("messages"), asked.get("system")
    texts = characters(messages)
    if system:
        texts += characters([{"role": "system", "content": system}])
    return MessageCall(model, texts, most, stream, tool_to_call(asked.get("tools"), messages))


def message(call: MessageCall, rng: random.Random) -> dict[str, Any]:
    """The whole answer of a call that does not stream."""
    block: dict[str, Any] = {"type": "text", "text": " ".join(call.words)}
    if call.tool:
        block = _tool_use(call, rng) | {"input": {"query": "weir"}}
    head = _head(call, rng)
    ending = {"stop_reason": call.stop_reason, "usage": call.usage(len(call.words))}
    return head | {"content": [block]} | ending


def events_of(call: MessageCall, rng: random.Random) -> Iterator[bytes]:
    """The events of a streamed answer, `message_stop` last."""
    yield _event("message_start", message=_head(call, rng) | {"usage": call.usage(1)})
    block: dict[str, Any] = {"type": "text", "text": ""}
    if call.tool:
        block = _tool_use(call, rng)
    yield _event("content_block_start", index=0, content_block=block)
    yield _event("ping")
    for number, word in enumerate(call.words):
        delta = {"type": "text_delta", "text": f" {word}" if number else word}
        if call.tool:
            delta = {"type": "input_json_delta", "partial_json": word}
        yield _event("content_block_delta", index=0, delta=delta)
    yield _event("content_block_stop", index=0)
    ending = {"stop_reason": call.stop_reason, "stop_sequence": None}
    yield _event("message_delta", delta=ending, usage={"output_tokens": len(call.words)})
    yield _event("message_stop")


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\n".encode() + event({"type": kind, **fields})


def _head(call: MessageCall, rng: random.Random) -> dict[str, Any]:
    return {
        "id": f"msg_{rng.getrandbits(96):024x}",
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _tool_use(call: MessageCall, rng: random.Random) -> dict[str, Any]:
    return {
        "type": "tool_use",
        "id": f"toolu_{rng.getrandbits(96):024x}",
        "name": call.tool,
        "input": {},
    }


class Messages:
    """How this vendor speaks about a call apart from its answer."""

    request_id = "request-id"
    always: dict[str, str] = {"anthropic-organization-id": "org-headworks"}  # noqa: RUF012  # never changed

    @staticmethod
    def error(status: int, text: str, *, param: str | None = None) -> dict[str, Any]:
        """A body in the vendor's error format."""
        return {"type": "error", "error": {"type": KINDS.get(status, "api_error"), "message": text}}

    @staticmethod
    def error_event(said: dict[str, Any]) -> bytes:
        """The event by which a stream tells that error."""
        return _event("error", error=said["error"])

    @staticmethod
    def rate_limited(ruling: Ruling, costs: dict[str, int], model: str) -> dict[str, Any]:
        """The 429 body of a refused call."""
        limit = ruling.refused_by
        assert limit is not None, "only refused calls have a 429"
        unit, window = limit.unit.replace("_", " "), limit.window_us / 1e6
        return Messages.error(
            429, f"This request would exceed the rate limit of {limit.amount} {unit} per {window:g} s"
        )

    @staticmethod
    def rate_headers(ruling: Ruling, now: float) -> dict[str, str]:
        """`anthropic-ratelimit-*` of the tightest limit per unit; resets are times of full refill."""
        headers: dict[str, str] = {}
        for standing in sorted(ruling.standings, key=lambda s: -s.remaining / s.limit.amount):
            unit = standing.limit.unit.replace("_", "-")
            left = max(0, standing.remaining)
            if standing.limit.unit != REQUESTS:
                left = round(left / ROUNDED) * ROUNDED
            full = datetime.fromtimestamp(now + standing.reset_us / 1e6, UTC)
            told = {"limit": standing.limit.amount, "remaining": left}
            headers |= {f"anthropic-ratelimit-{unit}-{name}": str(value) for name, value in told.items()}
            headers[f"anthropic-ratelimit-{unit}-reset"] = full.strftime("%Y-%m-%dT%H:%M:%SZ")
        if ruling.retry_us:
            headers["retry-after"] = str(math.ceil(ruling.retry_us / 1e6))
        return headers
