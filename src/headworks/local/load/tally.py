"""Counting: every request sent ends in exactly one place of the tally."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from headworks.local.load.outcome import Kind, Outcome


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from when a request was due until its answer was complete; nearest-rank percentiles."""

    count: int
    p50: float
    p95: float
    p99: float
    highest: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """The figures of a sample; all zero when it is empty."""
        ranked = sorted(seconds)
        if not ranked:
            return cls(0, 0.0, 0.0, 0.0, 0.0)
        picked = (ranked[math.ceil(p * len(ranked)) - 1] for p in (0.5, 0.95, 0.99, 1.0))
        return cls(len(ranked), *(round(seconds, 6) for seconds in picked))


@dataclass(frozen=True, slots=True)
class CrowdCount:
    """One crowd's requests: sent, and what became of them. `share` is served / sent."""

    name: str
    sent: int
    served: int
    refused: int
    invalid: int
    unsigned: int
    broken: int
    waiting: int

    @property
    def share(self) -> float:
        return self.served / self.sent if self.sent else 0.0


@dataclass(slots=True)
class Tally:
    """The running count.

    unsent  requests that were due but not sent, because too many were under way
    late    seconds by which the generator itself was late, at worst
    """

    sent: Counter[str] = field(default_factory=Counter)
    ended: Counter[tuple[str, Outcome]] = field(default_factory=Counter)
    latencies: dict[Kind, array[float]] = field(
        default_factory=lambda: {kind: array("d") for kind in Kind}
    )
    unsent: int = 0
    late: float = 0.0

    def end(self, crowd: str, outcome: Outcome, seconds: float) -> None:
        """Count one request of that crowd as ended."""
        self.ended[crowd, outcome] += 1
        self.latencies[outcome.kind].append(seconds)

    def crowd(self, name: str) -> CrowdCount:
        """One crowd's part."""
        kinds: Counter[Kind] = Counter()
        for (crowd, outcome), count in self.ended.items():
            if crowd == name:
                kinds[outcome.kind] += count
        return CrowdCount(
            name,
            self.sent[name],
            kinds[Kind.SERVED],
            kinds[Kind.REFUSED],
            kinds[Kind.INVALID],
            kinds[Kind.UNSIGNED],
            kinds[Kind.BROKEN],
            self.sent[name] - kinds.total(),
        )

    def latency(self, kind: Kind) -> Latency:
        """The latency of everything that ended this way."""
        return Latency.of(self.latencies[kind])
