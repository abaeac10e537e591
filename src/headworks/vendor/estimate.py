"""What a call will cost, before it is sent.

Estimates read the JSON body of a request: the model, the ceiling on generated tokens, how many
choices, and how much text. Four characters a token is the vendors' own rule of thumb for English;
it errs high for code and low for Chinese, and is settled afterwards where the vendor settles. A
tokenizer of the service's may count instead.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from headworks.policy.profiles import Charges

log = logging.getLogger("headworks")

CHARACTERS_PER_TOKEN = 4
CEILINGS = ("max_completion_tokens", "max_tokens", "max_output_tokens")

PROMPT = frozenset(("messages", "content", "text", "input", "prompt", "system", "instructions"))
"""The keys of requests under which text for the model stands."""

MOST_TOKENS = 1_000_000_000
"""Tokens a call may be taken to cost or to have cost at most: a larger number is no such thing, and the
arithmetic of line and quota need not bear it."""

LONG = 20_000
"""Characters from which on a tokenizer counts in a thread, so that the event loop turns meanwhile."""

UNSEEN = 256
"""Output tokens expected of a model that has not answered yet."""

MODELS = 1000
"""Models of which it is remembered how much they answer."""

WEIGHT = 0.1
"""The weight of the newest answer in what is expected of the next."""

Tokenizer = Callable[[str, str], int]
"""(model, text) -> tokens. Called in a thread for long texts, so it must bear that."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A call's model and its expected tokens: read by the vendor, written at most, and charged."""

    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    tokens: int = 0

    def cost(self) -> dict[str, int]:
        """The cost in every dimension that a vendor may count."""
        return {
            "requests": 1,
            "tokens": self.tokens,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
        }


class Outputs:
    """How much each model answers: the mean of what it wrote and twice the mean deviation, both
    smoothed, as TCP times its retransmissions (RFC 6298).

    Only for vendors that count output as it is generated: to hold back `max_tokens` for every call
    would starve a quota that the vendor does not charge it to.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, float]] = {}

    def expected(self, model: str, ceiling: int) -> int:
        """Output tokens to hold for a call, at least 1; a `ceiling` of 0 is none."""
        mean, deviation = self._known.get(model, (UNSEEN, 0.0))
        most = round(mean + 2 * deviation)
        return max(1, min(most, ceiling) if ceiling else most)

    def saw(self, model: str, written: int) -> None:
        """A call has written so many."""
        if model not in self._known:
            if len(self._known) >= MODELS:
                del self._known[next(iter(self._known))]
            self._known[model] = (written, written / 2)
            return
        mean, deviation = self._known[model]
        off = written - mean
        self._known[model] = (mean + WEIGHT * off, deviation + WEIGHT * (abs(off) - deviation))


def json_of(content: bytes) -> Any:
    """A request's JSON; None for a body that is none, or is nested beyond reason."""
    try:
        return json.loads(content) if content else None
    except (ValueError, RecursionError):
        return None


async def estimate(
    body: Any, charges: Charges, outputs: Outputs, tokenizer: Tokenizer | None = None
) -> Estimate:
    """The cost of a request with this JSON body, by the vendor's rule of charging.

    A body that is not an object, or is nested beyond reason, costs no tokens.
    """
    if not isinstance(body, dict):
        return Estimate()
    named = body.get("model")
    model = named if isinstance(named, str) else ""
    try:
        text = -(-characters(body, PROMPT) // CHARACTERS_PER_TOKEN)
        if tokenizer is not None:
            text = await _counted(tokenizer, model, list(texts(body, PROMPT)), text)
    except RecursionError:
        return Estimate()
    ceiling = max(_whole(body.get(name)) for name in CEILINGS)
    choices = max(_whole(body.get("n")), 1) if charges.choices else 1
    written = min(ceiling * choices, MOST_TOKENS)
    if charges.output == "live":
        written = outputs.expected(model, written)
    charged = {
        "max": max(ceiling, text),
        "prompt+max": text + ceiling,
        "prompt": text,
        "none": 0,
    }
    tokens = min(charged[charges.tokens] * choices, MOST_TOKENS)
    return Estimate(model=model, input_tokens=text, output_tokens=written, tokens=tokens)


async def _counted(tokenizer: Tokenizer, model: str, found: list[str], otherwise: int) -> int:
    """The tokens of these texts by a tokenizer; `otherwise` when it fails, which must cost no call."""

    def count() -> int:
        return sum(tokenizer(model, text) for text in found)

    try:
        if sum(map(len, found)) < LONG:
            return max(0, count())
        return max(0, await asyncio.to_thread(count))
    except Exception as error:
        log.warning("the tokenizer failed for model %r: %r; estimated instead", model, error)
        return otherwise


def _whole(value: Any) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return min(value, MOST_TOKENS) if whole else 0


def characters(value: Any, keys: Collection[str]) -> int:
    """The characters of every text under these keys, however nested."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(characters(inner, keys) for inner in value)
    if isinstance(value, dict):
        return sum(characters(inner, keys) for key, inner in value.items() if key in keys)
    return 0


def texts(value: Any, keys: Collection[str]) -> Iterator[str]:
    """Every text under these keys, however nested."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner, keys)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key in keys:
                yield from texts(inner, keys)
