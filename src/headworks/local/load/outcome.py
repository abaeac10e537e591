"""What became of one request, read from its answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum

from headworks.local.load.wire import Answer


class Kind(StrEnum):
    """The five things that can become of a request."""

    SERVED = "served"
    REFUSED = "refused"
    """A layer said no and said who it is."""
    INVALID = "invalid"
    """The application found fault with the request itself (a 4xx of its own)."""
    UNSIGNED = "unsigned"
    """A failure that none of our layers signed."""
    BROKEN = "broken"
    """No complete answer: the connection was refused, cut off, or too slow."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Kind, who decided, why, and with which status (0: none came)."""

    kind: Kind
    layer: str = ""
    reason: str = ""
    status: int = 0


def broken(kind: str) -> Outcome:
    """The outcome of a request without a complete answer."""
    return Outcome(Kind.BROKEN, "connection", kind)


def judge(answer: Answer) -> Outcome:
    """Read an answer. Only a problem body with `layer` and `reason` counts as a refusal of ours."""
    status = answer.status
    if status < 400:
        if answer.content_type == "text/event-stream":
            return _stream(answer)
        return Outcome(Kind.SERVED, status=status)
    if answer.content_type == "application/problem+json":
        signed = _signed(answer.body, status)
        if signed is not None:
            return signed
    if status >= 500 or status in (408, 413, 429):
        return Outcome(Kind.UNSIGNED, "unsigned", f"HTTP {status}", status)
    return Outcome(Kind.INVALID, "application", f"HTTP {status}", status)


def _signed(body: bytes, status: int) -> Outcome | None:
    try:
        problem = json.loads(body)
    except ValueError:
        return None
    if not isinstance(problem, dict):
        return None
    layer, reason = problem.get("layer"), problem.get("reason")
    if not isinstance(layer, str) or not isinstance(reason, str) or not layer or not reason:
        return None
    return Outcome(Kind.REFUSED, layer, reason, status)


def _stream(answer: Answer) -> Outcome:
    """A stream is served when its last event is `done`; an `error` event carries a problem body."""
    last = answer.body.rstrip().replace(b"\r\n", b"\n").rpartition(b"\n\n")[2]
    fields = dict(line.partition(b": ")[::2] for line in last.split(b"\n"))
    if fields.get(b"event") == b"error":
        signed = _signed(fields.get(b"data", b""), answer.status)
        return signed or Outcome(Kind.UNSIGNED, "unsigned", "stream error", answer.status)
    if fields.get(b"event") == b"done":
        return Outcome(Kind.SERVED, status=answer.status)
    return broken("stream without end")
