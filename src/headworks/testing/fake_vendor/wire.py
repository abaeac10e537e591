"""OpenAI's wire format, as far as chat completions need it: parse, answer, stream, refuse.

Token charge, at arrival, as OpenAI documents it: n · max(max_tokens, ⌈characters / 4⌉), at least 1,
where the characters are those of all message texts. Limits on input tokens are charged
⌈characters / 4⌉, limits on output tokens n · max_tokens (without one: what will be answered).
Usage, afterwards: prompt ⌈characters / 4⌉ (at least 1) and one completion token per word answered,
in all n choices.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from headworks.testing.fake_vendor.judge import INPUT_TOKENS, OUTPUT_TOKENS, REQUESTS, TOKENS, Ruling

WORDS = (
    *("Water", "behind", "the", "weir", "waits", "for", "its", "turn,", "and", "the", "gate", "opens"),
    *("only", "as", "far", "as", "the", "canal", "below", "can", "carry,", "so", "nothing", "floods."),
)
"""What every completion says, one token per word, cut after `max_tokens`."""

ARGUMENTS = '{"query":"weir"}'
"""What every tool is called with, one token."""

FINGERPRINT = "fp_headworks"


class BadRequest(ValueError):
    """The body cannot be served; `param` names the field, where one is to blame."""

    def __init__(self, message: str, param: str | None = None) -> None:
        self.param = param
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A chat completion as asked for. `max_tokens` is None when the caller left it open; `tool` is the
    one that will be called, empty for none."""

    model: str
    characters: int
    max_tokens: int | None
    n: int
    stream: bool
    include_usage: bool
    tool: str = ""

    @property
    def prompt_tokens(self) -> int:
        return max(1, -(-self.characters // 4))

    @property
    def costs(self) -> dict[str, int]:
        return {
            REQUESTS: 1,
            TOKENS: self.n * max(self.max_tokens or 0, self.prompt_tokens),
            INPUT_TOKENS: self.prompt_tokens,
            OUTPUT_TOKENS: self.n * (self.max_tokens or len(WORDS)),
        }

    @property
    def words(self) -> tuple[str, ...]:
        return (ARGUMENTS,) if self.tool else WORDS[: self.max_tokens]

    @property
    def finish_reason(self) -> str:
        if self.tool:
            return "tool_calls"
        return "stop" if len(self.words) == len(WORDS) else "length"

    def usage(self) -> dict[str, Any]:
        completion = self.n * len(self.words)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


def json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError as error:
        raise BadRequest(f"We could not parse the JSON body of your request: {error}") from None
    if not isinstance(value, dict):
        raise BadRequest("The body of your request must be a JSON object")
    return value


def parse_chat(body: bytes) -> ChatCall:
    """The call a body asks for. Raises `BadRequest` naming the parameter that is wrong."""
    asked = json_object(body)
    model = asked.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("you must provide a model parameter", "model")
    options = asked.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadRequest("'stream_options' must be an object", "stream_options")
    stream = asked.get("stream") or False
    if not isinstance(stream, bool):
        raise BadRequest("'stream' must be a boolean", "stream")
    limits = [count(asked, field, 10_000_000) for field in ("max_completion_tokens", "max_tokens")]
    return ChatCall(
        model=model,
        characters=characters(asked.get("messages")),
        max_tokens=limits[1] if limits[0] is None else limits[0],
        n=count(asked, "n", 128) or 1,
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        tool=tool_to_call(asked.get("tools"), asked.get("messages")),
    )


def count(asked: dict[str, Any], field: str, most: int) -> int | None:
    """A whole number from 1 to `most`; None where the caller left it open."""
    value = asked.get(field)
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= most:
        raise BadRequest(
            f"Invalid value for '{field}': {value!r}; expected an integer from 1 to {most}", field
        )
    return value


def characters(messages: object) -> int:
    """The characters of all message texts."""
    if not isinstance(messages, list) or not messages:
        raise BadRequest("'messages' must be a list with at least one message", "messages")
    total = 0
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest(f"'messages[{index}]' must be an object with a role", f"messages[{index}]")
        content = message.get("content")
        if isinstance(content, list):
            parts = [part.get("text") for part in content if isinstance(part, dict)]
            total += sum(len(text) for text in parts if isinstance(text, str))
        elif isinstance(content, str):
            total += len(content)
        elif content is not None:
            raise BadRequest("content must be a string or a list of parts", f"messages[{index}].content")
    return total


def tool_to_call(tools: object, messages: object) -> str:
    """The first tool's name, as long as no result of one has been told; empty for none."""
    if not isinstance(tools, list) or not tools or not isinstance(tools[0], dict):
        return ""
    told = json.dumps(messages)
    if '"role": "tool"' in told or '"type": "tool_result"' in told:
        return ""
    name = tools[0].get("function", tools[0]).get("name")
    return name if isinstance(name, str) else ""


def completion(call: ChatCall, created: int, rng: random.Random) -> dict[str, Any]:
    """The whole answer of a call that does not stream."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": " ".join(call.words),
        "refusal": None,
        "annotations": [],
    }
    if call.tool:
        message |= {"content": None, "tool_calls": [_tool_call(call, rng)]}
    choices = [
        {"index": i, "message": message, "logprobs": None, "finish_reason": call.finish_reason}
        for i in range(call.n)
    ]
    head = _head("chat.completion", "chatcmpl", call.model, created, rng)
    return head | {"choices": choices, "usage": call.usage()}


def chunks(call: ChatCall, created: int, rng: random.Random) -> Iterator[bytes]:
    """The events of a streamed answer, `[DONE]` last."""
    head = _head("chat.completion.chunk", "chatcmpl", call.model, created, rng)
    if call.include_usage:
        head["usage"] = None

    def each(delta: dict[str, Any], finish: str | None = None) -> Iterator[bytes]:
        for i in range(call.n):
            choice = {"index": i, "delta": delta, "logprobs": None, "finish_reason": finish}
            yield event(head | {"choices": [choice]})

    first: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
    if call.tool:
        begun = _tool_call(call, rng, arguments="")
        first |= {"content": None, "tool_calls": [{"index": 0} | begun]}
    yield from each(first)
    for number, word in enumerate(call.words):
        delta: dict[str, Any] = {"content": f" {word}" if number else word}
        if call.tool:
            delta = {"tool_calls": [{"index": 0, "function": {"arguments": word}}]}
        yield from each(delta)
    yield from each({}, call.finish_reason)
    if call.include_usage:
        yield event(head | {"choices": [], "usage": call.usage()})
    yield b"data: [DONE]\n\n"


def _tool_call(call: ChatCall, rng: random.Random, *, arguments: str = ARGUMENTS) -> dict[str, Any]:
    function = {"name": call.tool, "arguments": arguments}
    return {"id": f"call_{rng.getrandbits(96):024x}", "type": "function", "function": function}


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _head(kind: str, prefix: str, model: str, created: int, rng: random.Random) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{rng.getrandbits(116):029x}",
        "object": kind,
        "created": created,
        "model": model,
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    }


def error(
    message: str, kind: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """A body in the vendor's error format."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def reset(us: int) -> str:
    """A duration as the vendor writes it, rounded up to milliseconds: `12ms`, `1.5s`, `6m0s`."""
    ms = -(-us // 1000)
    if ms < 1000:
        return f"{ms}ms" if ms else "0s"
    minutes, ms = divmod(ms, 60_000)
    seconds = f"{ms / 1000:g}s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def search_results(query: str) -> dict[str, Any]:
    """The answer of the search endpoint: three results about `query`."""
    results = [
        {
            "title": f"{query} ({rank})",
            "url": f"https://search.example/{rank}",
            "snippet": f"What there is to know about {query}.",
            "score": round(1 / rank, 3),
        }
        for rank in (1, 2, 3)
    ]
    return {"object": "search", "query": query, "results": results}


class Chat:
    """How this vendor speaks about a call apart from its answer."""

    request_id = "x-request-id"
    always: dict[str, str] = {"openai-version": "2020-10-01"}  # noqa: RUF012  # never changed

    @staticmethod
    def error(status: int, text: str, *, param: str | None = None) -> dict[str, Any]:
        """A body in the vendor's error format."""
        if status == 400:
            return error(text, "invalid_request_error", param=param)
        if status == 429:
            return error(text, "requests", code="rate_limit_exceeded")
        return error(text, "server_error")

    @staticmethod
    def error_event(said: dict[str, Any]) -> bytes:
        """The event by which a stream tells that error."""
        return event(said)

    @staticmethod
    def rate_limited(ruling: Ruling, costs: dict[str, int], model: str) -> dict[str, Any]:
        """The 429 body of a refused call."""
        limit = ruling.refused_by
        assert limit is not None, "only refused calls have a 429"
        remaining = next(s.remaining for s in ruling.standings if s.limit is limit)
        short = "RPM" if limit.unit == REQUESTS else "TPM"
        used, asked = max(0, limit.amount - remaining), costs.get(limit.unit, 0)
        numbers = f"Limit {limit.amount}, Used {used}, Requested {asked}."
        window = f"{limit.unit} per {limit.window_us / 1e6:g} s ({short})"
        if ruling.retry_us is None:
            message = f"Request too large for {model} on {window}: {numbers}"
        else:
            message = f"Rate limit reached for {model} on {window}: {numbers} "
            message += f"Please try again in {reset(ruling.retry_us)}."
        return error(message, limit.unit, code="rate_limit_exceeded")

    @staticmethod
    def rate_headers(ruling: Ruling, now: float) -> dict[str, str]:
        """`x-ratelimit-*` of the tightest limit per unit; with the 429's `retry-after` when refused."""
        headers: dict[str, str] = {}
        loosest_first = sorted(ruling.standings, key=lambda s: -s.remaining / s.limit.amount)
        for standing in loosest_first:
            unit = standing.limit.unit
            headers[f"x-ratelimit-limit-{unit}"] = str(standing.limit.amount)
            headers[f"x-ratelimit-remaining-{unit}"] = str(max(0, standing.remaining))
            headers[f"x-ratelimit-reset-{unit}"] = reset(standing.reset_us)
        if ruling.retry_us:
            headers["retry-after"] = str(math.ceil(ruling.retry_us / 1e6))
            headers["retry-after-ms"] = str(math.ceil(ruling.retry_us / 1e3))
        return headers
