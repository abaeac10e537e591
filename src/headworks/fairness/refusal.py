"""What a verdict on a request's limits comes to: an event, and a refusal where it is one.

Nearly all of what is said of a limit is said again and again, so that is `Kept` of it; what a verdict
adds are numbers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from headworks.current import Criticality
from headworks.errors import QuotaExceeded
from headworks.limits.shapes import Shape
from headworks.problem import Whole, beginning, render, whole
from headworks.telemetry import Decided, Telemetry
from headworks.verdict import NEVER, Verdict

if TYPE_CHECKING:
    from headworks.fairness.limits import Asked

_CLASSES: Final = tuple(kind.name.lower() for kind in sorted(Criticality))
"""Names by number: asking an enumeration for a name takes five times as long."""


class Kept(NamedTuple):
    """What is said of a limit, whatever the numbers are.

    fifth    how many units the last fifth of it is, of a bucket of its burst; rounded up
    passes   the event when it is the tightest of those that let pass, by the request's class
    refuses  the event when it refuses
    problem  the `beginning` of the problem, then
    """

    fifth: int
    passes: tuple[Decided, ...]
    refuses: tuple[Decided, ...]
    problem: str


def kept(name: str, shape: Shape) -> Kept:
    """Made once per limit."""
    most = shape.most
    detail = _detail(name, shape.limit, shape.period, False)
    return Kept(
        most - most * 4 // 5,
        tuple(_passes(name, criticality) for criticality in sorted(Criticality)),
        tuple(_refuses(name, criticality) for criticality in sorted(Criticality)),
        beginning(QuotaExceeded, detail, name),
    )


def judged(
    verdict: Verdict, asked: Asked, criticality: Criticality, telemetry: Telemetry
) -> QuotaExceeded | None:
    """Tell of the verdict; the refusal that it is, None where it lets pass."""
    if verdict[0]:
        telemetry.emit(passing(verdict, asked, criticality))
        return None
    refused, event = refusal(verdict, asked, criticality)
    telemetry.emit(event)
    return refused


def passing(verdict: Verdict, asked: Asked, criticality: Criticality) -> Decided:
    """The event of a verdict that lets pass, with the units just taken of its limit's last fifth."""
    tightest = verdict.tightest
    if tightest is None:
        return _passes("", criticality)
    name = tightest[0]
    known = asked.kept.get(name)
    beyond = known[0] - tightest[4] if known is not None else 0
    if known is not None and (beyond <= 0 or verdict[9]):
        return known[1][criticality]
    return _passes(name, criticality, min(asked.asks[0].cost, beyond))


def answered(verdict: Verdict, asked: Asked, criticality: Criticality) -> tuple[Whole, Decided]:
    """The whole answer that a verdict which refuses comes to, and the event that tells of it: what
    `refusal` comes to, written in half the time where there is no more to say than numbers."""
    tightest, seconds = verdict.tightest, verdict[1]
    known = None if tightest is None else asked.kept.get(tightest[0])
    if known is None or seconds == NEVER or verdict[9]:
        refused, event = refusal(verdict, asked, criticality)
        return render(refused, asked.told(verdict, seconds)), event
    told = asked.told(verdict, seconds)
    return whole(QuotaExceeded.status, known[3], seconds, told), known[2][criticality]


def refusal(verdict: Verdict, asked: Asked, criticality: Criticality) -> tuple[QuotaExceeded, Decided]:
    """What a verdict that refuses comes to, and the event that tells of it."""
    tightest = verdict.tightest
    rule = tightest.name if tightest else ""
    if tightest is None:
        detail = "the shared store is away, and without it this limit lets nobody through"
    elif tightest.retry_after == NEVER and not verdict.degraded:
        detail = _never(rule, asked)
    else:
        detail = _detail(rule, tightest.limit, tightest.window, verdict.degraded)
    refused = QuotaExceeded(detail, retry_after=verdict.retry_after, limit=rule or None, verdict=verdict)
    return refused, _refuses(rule, criticality)


def _passes(rule: str, criticality: Criticality, near: int = 0) -> Decided:
    return Decided("fairness", True, "", rule, _CLASSES[criticality], near)


def _refuses(rule: str, criticality: Criticality) -> Decided:
    return Decided("fairness", False, QuotaExceeded.reason, rule, _CLASSES[criticality])


def _never(rule: str, asked: Asked) -> str:
    """Why a cost that is more than the limit ever holds is not worth asking for again."""
    ask = next(ask for ask in asked.asks if ask.name == rule)
    most = ask.shape.most
    return f"this costs {ask.cost} of {rule}, which never lets more than {most} through at once"


@lru_cache(maxsize=1024)
def _detail(rule: str, limit: int, window: float, degraded: bool) -> str:
    detail = f"{rule} allows {limit} per {window:g} s"
    if degraded:
        detail += "; while the shared store is away, this pod keeps to its own part of it"
    return detail
