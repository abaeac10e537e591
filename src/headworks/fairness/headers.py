"""Limits as response headers, from the verdict that decided; one function per dialect.

`draft-11` is draft-ietf-httpapi-ratelimit-headers-11: two lists of named items, `RateLimit-Policy`
(q units per w seconds) and `RateLimit` (r units left; t seconds until they are all back or, for the
limit that refused, until asking again can succeed, if it ever can). `x-ratelimit` is the older trio,
which can speak of one limit only: the tightest. Both count seconds from now, rounded up, and in a
refusal never further than its `Retry-After`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import ceil
from typing import Final

from headworks.limits.shapes import Shape
from headworks.problem import Headers
from headworks.verdict import NEVER, LimitState, Verdict

Passed = Callable[[Verdict], Headers]

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


def _passed_draft_11(limits: Sequence[tuple[str, Shape]]) -> Passed:
    """The same for what nearly every answer tells of: these limits, and none of them refused."""
    items = [_item(name, shape.limit, shape.period) for name, shape in limits]
    policy = (b"ratelimit-policy", ", ".join(policy for policy, _ in items).encode())
    states = b", ".join(begin.replace("%", "%%").encode() + b"%d;t=%d" for _, begin in items)

    def passed(verdict: Verdict) -> Headers:
        numbers: list[int] = []
        for state in verdict[2]:
            left, reset = state[4], state[5]
            if left < 0 or reset >= LONGEST:
                return draft_11(verdict, LONGEST)
            numbers += (left, ceil(reset - 1e-6))
        return [policy, (b"ratelimit", states % tuple(numbers))]

    return passed


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


def passed(dialect: str, limits: Sequence[tuple[str, Shape]]) -> Passed:
    """What makes a dialect's headers of verdicts in which all of these limits, by name, let pass."""
    if dialect == "draft-11":
        return _passed_draft_11(limits)
    told = DIALECTS[dialect]
    return lambda verdict: told(verdict, LONGEST)


def fields(dialect: str, verdict: Verdict | None, retry_after: float | None = None) -> Headers:
    """The headers that tell of a verdict in a dialect; none without a verdict or its limits.

    retry_after  seconds that the same answer asks its client to wait, where it does
    """
    if verdict is None or not verdict.limits:
        return []
    return DIALECTS[dialect](verdict, LONGEST if retry_after is None else retry_after)
