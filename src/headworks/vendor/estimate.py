"""What a call will cost, before it is sent; and what it did cost, from what the vendor says.

Estimates read the JSON body of a request: the model, the ceiling on generated tokens, how many
choices, and how much text. Four characters a token is the vendors' own rule of thumb for English;
it errs high for code and low for Chinese, and is settled afterwards where the vendor settles.
"""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass
from typing import Any

from headworks.policy.profiles import Charges

CHARACTERS_PER_TOKEN = 4
CEILINGS = ("max_completion_tokens", "max_tokens", "max_output_tokens")

KEPT = 8192
"""Bytes kept of a response's beginning and end, where usage stands."""

_USAGE = re.compile(
    rb'"(prompt_tokens|completion_tokens|total_tokens|input_tokens|output_tokens)"\s*:\s*(\d{1,9})(?!\d)'
)


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


def estimate(content: bytes, charges: Charges) -> Estimate:
    """The cost of a request with this body, by the vendor's rule of charging.

    A body that is not a JSON object, or is nested beyond reason, costs no tokens.
    """
    try:
        body = json.loads(content) if content else None
        characters = _characters(body)
    except (ValueError, RecursionError):
        return Estimate()
    if not isinstance(body, dict):
        return Estimate()
    text = -(-characters // CHARACTERS_PER_TOKEN)
    ceiling = max(_whole(body.get(name)) for name in CEILINGS)
    choices = max(_whole(body.get("n")), 1) if charges.choices else 1
    charged = {
        "max": max(ceiling, text),
        "prompt+max": text + ceiling,
        "prompt": text,
        "usage": text + ceiling,
        "none": 0,
    }
    model = body.get("model")
    return Estimate(
        model=model if isinstance(model, str) else "",
        input_tokens=text,
        output_tokens=ceiling * choices,
        tokens=charged[charges.tokens] * choices,
    )


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _characters(value: Any) -> int:
    """The characters of every text under the keys that carry prompts, however nested."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(map(_characters, value))
    if isinstance(value, dict):
        return sum(
            _characters(inner)
            for key, inner in value.items()
            if key in ("messages", "content", "text", "input", "prompt", "system", "instructions")
        )
    return 0


class UsageReader:
    """Watches a response's bytes go by and finds the usage it reports, JSON or event stream alike.

    Keeps only its first and last `KEPT` bytes. A compressed body is decompressed on the side.
    """

    def __init__(self, encoding: str = "") -> None:
        self.seen = 0
        self._head = b""
        self._tail = b""
        self._inflate = zlib.decompressobj(47) if encoding in ("gzip", "deflate") else None

    def feed(self, chunk: bytes) -> None:
        """Look at the next piece as it came over the wire."""
        self.seen += len(chunk)
        if self._inflate is not None:
            try:
                chunk = self._inflate.decompress(chunk)
            except zlib.error:
                return
        if len(self._head) < KEPT:
            self._head += chunk[: KEPT - len(self._head)]
        self._tail = (self._tail + chunk)[-KEPT:]

    def usage(self) -> dict[str, int]:
        """Tokens by dimension as last reported; empty when the response said nothing."""
        said = {name.decode(): int(value) for name, value in _USAGE.findall(self._head + self._tail)}
        read = said.get("prompt_tokens", said.get("input_tokens"))
        written = said.get("completion_tokens", said.get("output_tokens"))
        if read is None or written is None:
            return {}
        total = said.get("total_tokens", read + written)
        return {"tokens": total, "input_tokens": read, "output_tokens": written}
