"""Shapes written the way people say them: "100/min" is a window, "10/s burst 5" a bucket."""

from __future__ import annotations

import re

from headworks.limits.shapes import Bucket, Shape, Window

_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_LONG = {"sec": "s", "second": "s", "minute": "min", "hour": "h", "day": "d"}
_RATE = re.compile(
    r"(?P<limit>[0-9][0-9_]{0,15})\s*/\s*(?P<count>[0-9]{1,6})?\s*(?P<period>[a-z]+)"
    r"(?:\s+burst\s+(?P<burst>[0-9][0-9_]{0,15}))?",
    re.IGNORECASE | re.ASCII,
)
_HINT = 'write an amount per period, such as "100/min", "10/30s" or "10/s burst 5"'


def shape_of(rate: str | Shape) -> Shape:
    """The shape that a text names; a shape is returned as it is.

    "100/min"        at most 100 in any minute: `Window.of(100, 60)`
    "10/s burst 5"   evenly paced, 5 at once: `Bucket.of(10, 1, burst=5)`

    Periods are ms, s, m or min, h and d, or written out, after a whole number where it is not one.
    Raises `ValueError`, which names the text and says what would be right.
    """
    if isinstance(rate, (Window, Bucket)):
        return rate
    match = _RATE.fullmatch(rate.strip()) if isinstance(rate, str) else None
    if match is None:
        raise ValueError(f"rate: {rate!r:.80} is not a rate; {_HINT}")
    word = match["period"].lower()
    seconds = _SECONDS.get(_LONG.get(word, word))
    if seconds is None:
        raise ValueError(f"rate: {rate!r:.80}: {word!r} is no period; {_HINT}")
    limit, period = int(match["limit"]), int(match["count"] or 1) * seconds
    try:
        if match["burst"] is not None:
            return Bucket.of(limit, period, burst=int(match["burst"]))
        return Window.of(limit, period)
    except ValueError as error:
        raise ValueError(f"rate: {rate!r:.80}: {error}") from None
