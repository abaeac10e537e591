"""What a verdict on a request's limits comes to: an event, and a refusal where it is one.

Both are made of few parts that come again and again, so what can be kept is kept.
"""

from __future__ import annotations

from functools import lru_cache
from math import inf
from typing import Final

from headworks.current import Criticality
from headworks.errors import QuotaExceeded
from headworks.fairness.limits import Asked
from headworks.limits.shapes import Bucket
from headworks.telemetry import Decided, Telemetry
from headworks.verdict import NEVER, Verdict

_CLASSES: Final = tuple(kind.name.lower() for kind in sorted(Criticality))
"""Names by number: asking an enumeration for a name takes five times as long."""


def judged(
    verdict: Verdict, asked: Asked, criticality: Criticality, telemetry: Telemetry
) -> QuotaExceeded | None:
    """Tell of the verdict; the refusal that it is, None where it lets pass."""
    if verdict[0]:
        rule, close = _fullest(verdict, asked)
        telemetry.emit(_decided(True, rule, _CLASSES[criticality], close))
        return None
    refused, event = refusal(verdict, asked, criticality)
    telemetry.emit(event)
    return refused


def refusal(verdict: Verdict, asked: Asked, criticality: Criticality) -> tuple[QuotaExceeded, Decided]:
    """What a verdict that refuses comes to, and the event that tells of it."""
    tightest = verdict.tightest
    rule = tightest.name if tightest else ""
    event = _decided(False, rule, _CLASSES[criticality], 0)
    if tightest is None:
        detail = "the shared store is away, and without it this limit lets nobody through"
    elif tightest.retry_after == NEVER and not verdict.degraded:
        detail = _never(rule, asked)
    else:
        detail = _detail(rule, tightest.limit, tightest.window, verdict.degraded)
    refused = QuotaExceeded(detail, retry_after=verdict.retry_after, limit=rule or None, verdict=verdict)
    return refused, event


def _fullest(verdict: Verdict, asked: Asked) -> tuple[str, int]:
    """The name of the limit that is `Verdict.tightest`, and the units just taken of its last fifth."""
    least, fullest, last = inf, None, (0, 0)
    for state, fifth in zip(verdict[2], asked.fifths, strict=False):
        part = state[4] / state[1]
        if part < least:
            least, fullest, last = part, state, fifth
    if fullest is None:
        return "", 0
    beyond = last[0] - fullest[4]
    if beyond <= 0 or verdict.degraded:
        return fullest[0], 0
    return fullest[0], min(last[1], beyond)


def _never(rule: str, asked: Asked) -> str:
    """Why a cost that is more than the limit ever holds is not worth asking for again."""
    ask = next(ask for ask in asked.asks if ask.name == rule)
    most = ask.shape.burst if isinstance(ask.shape, Bucket) else ask.shape.limit
    return f"this costs {ask.cost} of {rule}, which never lets more than {most} through at once"


@lru_cache(maxsize=1024)
def _decided(admitted: bool, rule: str, criticality: str, close: int) -> Decided:
    """The same event for the same facts."""
    reason = "" if admitted else QuotaExceeded.reason
    return Decided("fairness", admitted, reason, rule, criticality, close)


@lru_cache(maxsize=1024)
def _detail(rule: str, limit: int, window: float, degraded: bool) -> str:
    detail = f"{rule} allows {limit} per {window:g} s"
    if degraded:
        detail += "; while the shared store is away, this pod keeps to its own part of it"
    return detail
