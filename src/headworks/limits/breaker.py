"""The circuit breaker's states as arithmetic (draft: rules and endings)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Ending(StrEnum):
    """How an attempt at a vendor ended; breaker and budgets learn from nothing else."""

    OK = "ok"
    """The vendor answered, even with a 400."""
    FAILED = "failed"
    """5xx, or a broken connection."""
    OVERLOADED = "overloaded"
    """429, or no answer in time."""
    IGNORED = "ignored"
    """Our own refusal, or the caller left: says nothing about the vendor."""


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When a breaker opens and how it closes again.

    failure_ratio  opens at this part of failed or slow calls, 0 < r ≤ 1
    min_calls      but never on fewer calls than this within the window, ≥ 1
    window_us      over which calls are counted
    open_us        how long it stays open before probes are let through
    probes         calls let through half-open, and successes needed to close, ≥ 1
    probe_us       a probe whose ending never arrives is given up after this long
    """

    failure_ratio: float
    min_calls: int
    window_us: int
    open_us: int
    probes: int
    probe_us: int
