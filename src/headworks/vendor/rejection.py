"""What kind of 429 it was: too many calls, too steep a rise, or money spent. Told by the body.

rate   the quota of some seconds is used up: pause as long as the vendor says
ramp   the vendor limits how fast demand may rise: the same, and the slow start after it is the cure
spend  credit or a budget is used up: no pause helps soon, and no retry
"""

from __future__ import annotations

import contextlib
import zlib
from enum import StrEnum

import httpx2

REJECTED = 429
OVERLOADED = frozenset({REJECTED, 529})

LONGEST = 16_384
"""Bytes of a body that are looked at."""

PAUSE = 1.0
"""Seconds the fleet pauses when the vendor names no time."""

SPENT = 60.0
"""Seconds the fleet pauses at least when its money is spent."""

SPEND = (b"insufficient_quota", b"billing", b"credit balance", b"spend limit", b"spending limit")
RAMP = (b"acceleration", b"ramp", b"increase in usage", b"usage increase")

KIND = "headworks.rejection"
"""The key of a response's extensions under which its kind stands."""


class Rejection(StrEnum):
    """Why a vendor answered 429."""

    RATE = "rate"
    RAMP = "ramp"
    SPEND = "spend"


def classify(body: bytes) -> Rejection:
    """The kind that a body speaks of; `RATE` when it says nothing of the others."""
    text = body.lower()
    if any(word in text for word in SPEND):
        return Rejection.SPEND
    return Rejection.RAMP if any(word in text for word in RAMP) else Rejection.RATE


async def classified(answer: httpx2.Response) -> httpx2.Response:
    """The same answer, its body read and its kind noted. The bytes stay as they came off the wire."""
    assert isinstance(answer.stream, httpx2.AsyncByteStream)  # an async client's answer
    raw = b"".join([piece async for piece in answer.stream])
    await answer.stream.aclose()
    body = raw[:LONGEST]
    if answer.headers.get("content-encoding", "") in ("gzip", "deflate"):
        with contextlib.suppress(zlib.error):
            body = zlib.decompressobj(wbits=47).decompress(body, LONGEST)
    answer.stream = httpx2.ByteStream(raw)
    answer.extensions = {**answer.extensions, KIND: classify(body)}
    return answer
