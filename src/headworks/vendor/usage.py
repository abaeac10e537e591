"""What a call did cost: from what the vendor says, or from what was seen of a stream that was left.

OpenAI's streams tell their usage only when asked, in a chunk of its own without choices. Where the
caller did not ask, we do (`ask_for_usage`), and take that chunk out again (`UsageChunk`).
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from headworks.policy.profiles import Usage
from headworks.vendor.estimate import CHARACTERS_PER_TOKEN, MOST_TOKENS, Estimate, characters

KEPT = 8192
"""Bytes kept of a response's beginning and end, where usage stands."""

MOST_HELD = 1 << 20
"""Bytes of an unfinished event that are held back at most."""

WRITTEN = frozenset(
    {
        *("choices", "delta", "content", "text", "partial_json", "thinking", "reasoning_content"),
        *("refusal", "tool_calls", "function", "arguments"),
    }
)
"""The keys of events under which generated text stands."""

BOUNDARY = re.compile(rb"\r\n\r\n|\n\n|\r\r")
"""What stands between two events of a stream."""

_DECODER = json.JSONDecoder()
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_NO_USAGE = re.compile(rb',\s*"usage"\s*:\s*null|"usage"\s*:\s*null\s*,')


class UsageReader:
    """Watches a response's bytes go by and finds the usage it reports, JSON or event stream alike.

    Keeps only its first and last `KEPT` bytes. A compressed body is decompressed on the side.

    tail  the last bytes, as they read decompressed
    """

    def __init__(self, usage: Usage, encoding: str = "") -> None:
        self.seen = 0
        self._paths, self._length = usage, 0
        self._head = b""
        self.tail = b""
        self._inflate = zlib.decompressobj(47) if encoding in ("gzip", "deflate") else None

    def feed(self, chunk: bytes) -> None:
        """Look at the next piece as it came over the wire."""
        self.seen += len(chunk)
        if self._inflate is not None:
            try:
                chunk = self._inflate.decompress(chunk)
            except zlib.error:
                return
        self._length += len(chunk)
        if len(self._head) < KEPT:
            self._head += chunk[: KEPT - len(self._head)]
        self.tail = (self.tail + chunk)[-KEPT:]

    def usage(self) -> dict[str, int]:
        """Tokens by dimension as last reported; dimensions of which the response said nothing are
        left out."""
        said: dict[str, Any] = {}
        for found in self._objects():
            said |= {name: value for name, value in found.items() if value is not None}
        read, written = _sum(said, self._paths.input), _sum(said, self._paths.output)
        total = _sum(said, self._paths.total)
        if total is None and read is not None and written is not None:
            total = read + written
        told = {"tokens": total, "input_tokens": read, "output_tokens": written}
        return {unit: tokens for unit, tokens in told.items() if tokens is not None}

    def _objects(self) -> Iterable[dict[str, Any]]:
        """Every usage object in what was kept, in order. In generated text its quotes are escaped, so
        that no answer can forge one."""
        kept = self._head if self._length <= KEPT else self._head + b"\0" + self.tail
        text = kept.decode("utf-8", "replace")
        for match in _container(self._paths).finditer(text):
            try:
                yield _DECODER.raw_decode(text, match.end())[0]
            except (ValueError, RecursionError):
                continue  # cut off where the middle was not kept

    def written(self) -> int:
        """About how many tokens an event stream has brought: what part of its last events is text,
        of all that was seen, at four characters a token."""
        lines = [line[5:] for line in self.tail.splitlines() if line.startswith(b"data:")]
        text = sum(characters(_json(line), WRITTEN) for line in lines)
        return round(text / max(len(self.tail), 1) * self._length / CHARACTERS_PER_TOKEN)


def settled(
    expected: Estimate, reader: UsageReader, *, whole: bool, streamed: bool, refunds: bool
) -> Mapping[str, int] | None:
    """What a call is to be settled at, dimension by dimension; None keeps what was booked.

    A stream that was left before its end has read the whole prompt and written what was seen of it,
    or what it said last, if that was more. Where the vendor does not refund, a call costs what was
    booked at least.
    """
    used = reader.usage()
    if not whole and streamed:
        read = used.get("input_tokens", expected.input_tokens)
        written = max(used.get("output_tokens", 0), reader.written())
        used = {"tokens": read + written, "input_tokens": read, "output_tokens": written}
    if not used:
        return None
    if refunds:
        return used
    return {unit: max(used[unit], cost) for unit, cost in expected.cost().items() if unit in used}


@cache
def _container(usage: Usage) -> re.Pattern[str]:
    """Where the object begins that holds the numbers."""
    name = (usage.output or usage.total or ("usage.",))[0].split(".")[-2]
    return re.compile(rf'"{re.escape(name)}"\s*:\s*(?={{)')


def _sum(said: dict[str, Any], paths: Iterable[str]) -> int | None:
    """The numbers under the last names of these paths together; None when there are none."""
    values = [said.get(path.rpartition(".")[2]) for path in paths]
    found = [value for value in values if type(value) is int and 0 <= value < MOST_TOKENS]
    return sum(found) if found else None


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def ask_for_usage(content: bytes, body: Any, usage: Usage, path: str) -> bytes | None:
    """The request's content with the switch on that makes its stream tell its usage; None where that
    needs no change: no such stream, no such switch, or the caller has set it either way."""
    if not usage.stream_option or not path.endswith(usage.stream_calls):
        return None
    if not isinstance(body, dict) or body.get("stream") is not True:
        return None
    section, _, option = usage.stream_option.partition(".")
    stated = body.get(section)
    if stated is None and section not in body:
        end = content.rindex(b"}")
        return content[:end] + f',"{section}":{{"{option}":true}}}}'.encode()
    if stated is not None and not isinstance(stated, dict):
        return None  # the vendor will say what is wrong with it
    if stated and option in stated:
        return None
    return json.dumps(body | {section: {**(stated or {}), option: True}}).encode()


class UsageChunk:
    """Takes the chunk that tells the usage out of a stream of events, and `"usage": null` out of the
    others, which only say that it is still to come. All else stays as it is, byte for byte.

    An event is passed on when it is whole.
    """

    def __init__(self) -> None:
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        """What the caller sees of the next piece; may be empty."""
        data = self._held + piece
        ends = [boundary.end() for boundary in BOUNDARY.finditer(data)]
        last = ends[-1] if ends else 0
        whole, self._held = data[:last], data[last:]
        if len(self._held) > MOST_HELD:
            whole, self._held = data, b""
        if not _NO_USAGE.search(whole) and not _NO_CHOICES.search(whole):
            return whole
        events = (data[start:end] for start, end in zip([0, *ends], ends, strict=False))
        return b"".join(map(_without_usage, events))

    def rest(self) -> bytes:
        """What was held back when the stream is over."""
        held, self._held = self._held, b""
        return held


def _without_usage(event: bytes) -> bytes:
    """An event as it would have been had nobody asked for usage: without the member, or nothing."""
    said = data_of(event)
    if not isinstance(said, dict) or "usage" not in said:
        return event
    usage = said.pop("usage")
    if usage is None:
        shorter = _NO_USAGE.sub(b"", event, count=1)
        return shorter if data_of(shorter) == said else event
    return b"" if said.get("choices") == [] and isinstance(usage, dict) else event


def data_of(event: bytes) -> Any:
    """An event's data; None where it is no JSON."""
    return _json(b"".join(line[5:] for line in event.splitlines() if line.startswith(b"data:")))
