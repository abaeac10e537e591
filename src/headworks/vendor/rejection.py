"""What kind of 429 it was: too many calls, too steep a rise, or money spent. Told by the body.

rate   the quota of some seconds is used up: pause as long as the vendor says
ramp   the vendor limits how fast demand may rise: the same, and the slow start after it is the cure
spend  credit or a budget is used up: no pause helps soon, and no retry
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator
from enum import StrEnum

import httpx2

REJECTED = 429
OVERLOADED = frozenset({REJECTED, 529})

LONGEST = 16_384
"""Bytes of a body that are looked at."""

PAUSE = 1.0
"""Seconds the fleet pauses when the vendor names no time."""
MOST = 1 << 20
"""Bytes of a body that are read; one that goes on is cut off there."""

PATIENCE = 1.0
"""Seconds that a body may take: the fleet does not know of the rejection until it is read."""

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


class _Cut(httpx2.AsyncByteStream):
    """What came of a body, and all that will."""

    def __init__(self, raw: bytes, rest: httpx2.AsyncByteStream) -> None:
        self._raw, self._rest = raw, rest

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._raw

    async def aclose(self) -> None:
        await self._rest.aclose()


async def _read(stream: httpx2.AsyncByteStream) -> tuple[bytes, bool]:
    """What comes of a body in time, and whether that is all of it."""
    raw, whole = bytearray(), False
    with contextlib.suppress(TimeoutError, httpx2.TransportError):
        async with asyncio.timeout(PATIENCE):
            async for piece in stream:
                raw += piece
                if len(raw) >= MOST:
                    break
            else:
                whole = True
    return bytes(raw), whole


async def classified(answer: httpx2.Response) -> httpx2.Response:
    """The same answer, its body read and its kind noted. The bytes stay as they came off the wire; of a
    body that breaks off or does not end, those that came."""
    stream = answer.stream
    assert isinstance(stream, httpx2.AsyncByteStream)  # an async client's answer
    raw, whole = await _read(stream)
    if whole:
        await stream.aclose()
    body = raw[:LONGEST]
    if answer.headers.get("content-encoding", "") in ("gzip", "deflate"):
        with contextlib.suppress(zlib.error):
            body = zlib.decompressobj(wbits=47).decompress(body, LONGEST)
    answer.stream = httpx2.ByteStream(raw) if whole else _Cut(raw, stream)
    answer.extensions = {**answer.extensions, KIND: classify(body)}
    return answer
