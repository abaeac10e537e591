"""Limits as response headers, from the verdict that decided; one function per dialect.

`draft-11` is draft-ietf-httpapi-ratelimit-headers-11: two lists of named items, `RateLimit-Policy`
(q units per w seconds) and `RateLimit` (r units left; t seconds until they are all back or, for the
limit that refused, until asking again can succeed). `x-ratelimit` is the older trio, which can speak
of one limit only: the tightest. Both count seconds from now, rounded up, and in a refusal never further
than its `Retry-After`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import ceil
from typing import Final

from headworks.problem import Headers
from headworks.verdict import LimitState, Verdict

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
    return _seconds(min(state.reset if state.allowed else state.retry_after, most))


def _name(name: str) -> str:
    """A name as a structured-field string (RFC 8941): printable ASCII, quotes escaped."""
    plain = name.encode("ascii", "replace").decode()
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


@lru_cache(maxsize=4096)
def _item(name: str, limit: int, window: float) -> tuple[str, str]:
    """What never changes of a limit: its item of `RateLimit-Policy`, how that of `RateLimit` begins."""
    quoted = _name(name)
    return f"{quoted};q={limit};w={max(1, _seconds(window))}", f"{quoted};r="


@lru_cache(maxsize=4096)
def _policy(items: tuple[str, ...]) -> tuple[bytes, bytes]:
    return (b"ratelimit-policy", ", ".join(items).encode())


def draft_11(verdict: Verdict, most: float) -> Headers:
    """`RateLimit-Policy` and `RateLimit`, one item per limit."""
    policies: list[str] = []
    states = ""
    for name, limit, window, allowed, left, reset, again in verdict.limits:
        policy, state = _item(name, limit, window)
        policies.append(policy)
        seconds = reset if allowed else again
        after = ceil((seconds if seconds < most else most) - 1e-6)
        if left < 0 or after < 0:
            left, after = max(left, 0), max(after, 0)
        states += f", {state}{left};t={after}" if states else f"{state}{left};t={after}"
    return [_policy(tuple(policies)), (b"ratelimit", states.encode())]


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


def fields(dialect: str, verdict: Verdict | None, retry_after: float | None = None) -> Headers:
    """The headers that tell of a verdict in a dialect; none without a verdict or its limits.

    retry_after  seconds that the same answer asks its client to wait, where it does
    """
    if verdict is None or not verdict.limits:
        return []
    return DIALECTS[dialect](verdict, LONGEST if retry_after is None else retry_after)
