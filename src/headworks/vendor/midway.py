"""An error that a stream tells of midway: its status was 200, and what it came to stands in an event.

    anthropic           event: error · {"type": "error", "error": {"type": "overloaded_error", …}}
    openai, azure       {"error": {"type": "server_error", "code": …, …}}
    openai's responses  {"type": "error", "code": "server_error", …}, or `response.failed`, with the
                        error in its response

It ends a call as the status would have that it stands for: overloaded as a 429 or 529, failed as a 5xx,
and as any other answer where the request is to blame. No answer can forge one: in generated text quotes
and line ends are escaped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headworks.limits.breaker import Ending
from headworks.vendor.rejection import OVERLOADED, Rejection, classify
from headworks.vendor.usage import BOUNDARY, data_of

OVERLOAD = ("overloaded", "rate_limit", "slow_down", "insufficient_quota")
REQUEST = (
    *("invalid", "authentication", "permission", "not_found", "too_large", "billing"),
    *("content_", "context_length", "unsupported"),
)
"""Parts of the names of errors. One without any of them is the vendor's own failure."""

NAME = b"event:error"


@dataclass(frozen=True, slots=True)
class Midway:
    """kind  why the vendor is overloaded, if it is"""

    ending: Ending
    kind: Rejection


def find(events: bytes) -> Midway | None:
    """The last error that these events tell of, from the end of a stream and perhaps cut anywhere."""
    if b"error" not in events:
        return None
    for event in reversed(BOUNDARY.split(events)):
        if b"error" in event and (error := _error(event)) is not None:
            return Midway(_ending(error), classify(event))
    return None


def _error(event: bytes) -> Any:
    data = data_of(event)
    if isinstance(data, dict):
        if data.get("error"):
            return data["error"]
        if data.get("type") == "error":
            return data
        if data.get("type") == "response.failed" and isinstance(data.get("response"), dict):
            return data["response"].get("error")
    return "error" if NAME in event.replace(b": ", b":").splitlines() else None


def _ending(error: Any) -> Ending:
    told = (error.get("type"), error.get("code")) if isinstance(error, dict) else (error,)
    names = [str(name).lower() for name in told if name is not None]
    for name in names:
        if len(name) == 3 and name.isdecimal():
            status = int(name)
            if status in OVERLOADED:
                return Ending.OVERLOADED
            return Ending.OK if 400 <= status < 500 else Ending.FAILED
    if any(part in name for name in names for part in OVERLOAD):
        return Ending.OVERLOADED
    return Ending.OK if any(part in name for name in names for part in REQUEST) else Ending.FAILED
