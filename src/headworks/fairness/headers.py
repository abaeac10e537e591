"""Limits as response headers, from the verdict that decided; one function per dialect.

`draft-11` is draft-ietf-httpapi-ratelimit-headers-11: two lists of named items, `RateLimit-Policy`
(q units per w seconds) and `RateLimit` (r units left; t seconds until they are all back or, for the
limit that refused, until asking again can succeed, if it ever can). `x-ratelimit` is the older trio,
which can speak of one limit only: the tightest. Both count seconds from now, rounded up, and in a
refusal never further than its `Retry-After`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from math import ceil
from typing import Final, Protocol

from headworks.limits.shapes import Shape
from headworks.problem import Headers
from headworks.verdict import NEVER, LimitState, Verdict


class Told(Protocol):
    """Makes the headers of a verdict, as `fields` does."""

    def __call__(self, verdict: Verdict, retry_after: float | None = None) -> Headers: ...


NAMES: Final = frozenset(
    {
        b"ratelimit",
        b"ratelimit-policy",
        b"x-ratelimit-limit",
        b"x-ratelimit-remaining",
        b"x-ratelimit-reset",
    }
)
"""What the headers are called, in any dialect."""
LONGEST: Final = 31 * 86400
"""Seconds shown at most, so that no client waits for something that never comes."""


def _seconds(value: float) -> int:
    if value >= LONGEST:
        return LONGEST
    up = ceil(value - 1e-6)
    return up if up > 0 else 0


def _until(state: LimitState, most: float) -> int:
    """Until asking again can succeed, where it refused; else, or if it never can, until all is back."""
    refused = not state.allowed and state.retry_after != NEVER
    return _seconds(min(state.retry_after if refused else state.reset, most))


def _name(name: str) -> str:
    """A name as a structured-field string (RFC 8941): printable ASCII, quotes escaped."""
    plain = name.encode("ascii", "replace").decode()
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


@lru_cache(maxsize=4096)
def _item(name: str, limit: int, window: float) -> tuple[str, str]:
    """What never changes of a limit: its item of `RateLimit-Policy`, how that of `RateLimit` begins."""
    quoted = _name(name)
    return f"{quoted};q={limit};w={max(1, _seconds(window))}", f"{quoted};r="


def draft_11(verdict: Verdict, most: float) -> Headers:
    """`RateLimit-Policy` and `RateLimit`, one item per limit."""
    policies, states = [], []
    for state in verdict.limits:
        policy, begin = _item(state.name, state.limit, state.window)
        policies.append(policy)
        states.append(f"{begin}{max(state.remaining, 0)};t={_until(state, most)}")
    return [
        (b"ratelimit-policy", ", ".join(policies).encode()),
        (b"ratelimit", ", ".join(states).encode()),
    ]


def _told_draft_11(limits: Sequence[tuple[str, Shape]]) -> Told:
    """The same for what nearly every answer tells of: these limits as they are, and no other."""
    items = [_item(name, shape.limit, shape.period) for name, shape in limits]
    policy = (b"ratelimit-policy", ", ".join(policy for policy, _ in items).encode())
    states = b", ".join(begin.replace("%", "%%").encode() + b"%d;t=%d" for _, begin in items)
    many = len(items)

    def told(verdict: Verdict, retry_after: float | None = None) -> Headers:
        most = LONGEST if retry_after is None else retry_after
        if most > LONGEST or verdict[9] or len(verdict[2]) != many:
            return fields("draft-11", verdict, retry_after)
        numbers: list[int] = []
        for state in verdict[2]:
            left, seconds = state[4], state[5] if state[3] else state[6]
            if left < 0:
                left = 0
            if seconds > most:
                seconds = most
            numbers += (left, ceil(seconds - 1e-6))
        return [policy, (b"ratelimit", states % tuple(numbers))]

    return told


def x_ratelimit(verdict: Verdict, most: float) -> Headers:
    """`X-RateLimit-Limit`, `-Remaining` and `-Reset` (seconds from now) of the tightest limit."""
    state = verdict.tightest
    assert state is not None
    return [
        (b"x-ratelimit-limit", str(state.limit).encode()),
        (b"x-ratelimit-remaining", str(max(0, state.remaining)).encode()),
        (b"x-ratelimit-reset", str(_until(state, most)).encode()),
    ]


DIALECTS: Final[dict[str, Callable[[Verdict, float], Headers]]] = {
    "draft-11": draft_11,
    "x-ratelimit": x_ratelimit,
    "off": lambda verdict, most: [],
}


def told(dialect: str, limits: Sequence[tuple[str, Shape]]) -> Told:
    """`fields` in this dialect, fastest of verdicts on these limits, by name, in this order."""
    return _told_draft_11(limits) if dialect == "draft-11" else partial(fields, dialect)


def fields(dialect: str, verdict: Verdict | None, retry_after: float | None = None) -> Headers:
    """The headers that tell of a verdict in a dialect; none without a verdict or its limits.

    retry_after  seconds that the same answer asks its client to wait, where it does
    """
    if verdict is None or not verdict.limits:
        return []
    return DIALECTS[dialect](verdict, LONGEST if retry_after is None else retry_after)
