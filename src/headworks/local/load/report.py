"""The result of a run as one frozen record, for the table and for `--json` alike."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from headworks.local.load.outcome import Kind
from headworks.local.load.profiles import Profile
from headworks.local.load.tally import CrowdCount, Latency, Tally
from headworks.local.load.vendors import VendorCount

LAYERS = (
    "",
    "gateway",
    "admission",
    "fairness",
    "request",
    "vendor",
    "application",
    "unsigned",
    "connection",
)
"""The order of rows: served first, then the way in, then what nobody of us decided."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How many requests ended in the same way, per crowd and together."""

    kind: Kind
    layer: str
    reason: str
    status: int
    crowds: dict[str, int]

    @property
    def count(self) -> int:
        return sum(self.crowds.values())


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a run showed. Durations in seconds.

    late    by how much the generator itself was late, at worst; its lateness counts as latency
    unsent  requests due while too many were under way
    """

    profile: str
    url: str
    seed: int
    seconds: float
    crowds: tuple[CrowdCount, ...]
    decisions: tuple[Decision, ...]
    served: Latency
    refused: Latency
    unsent: int
    late: float
    vendors: tuple[VendorCount, ...]

    @classmethod
    def of(
        cls,
        profile: Profile,
        tally: Tally,
        *,
        url: str,
        seed: int,
        seconds: float,
        vendors: tuple[VendorCount, ...] = (),
    ) -> Report:
        """The report of what has been counted so far."""
        return cls(
            profile.name,
            url,
            seed,
            round(seconds, 3),
            tuple(tally.crowd(crowd.name) for crowd in profile.crowds),
            _decisions(tally),
            tally.latency(Kind.SERVED),
            tally.latency(Kind.REFUSED),
            tally.unsent,
            round(tally.late, 6),
            vendors,
        )

    @property
    def sent(self) -> int:
        return sum(crowd.sent for crowd in self.crowds)

    def as_json(self) -> dict[str, Any]:
        """Plain data, with totals and shares spelled out."""
        data = asdict(self)
        data["sent"] = self.sent
        for plain, crowd in zip(data["crowds"], self.crowds, strict=True):
            plain["share"] = round(crowd.share, 4)
        for plain, decision in zip(data["decisions"], self.decisions, strict=True):
            plain["count"] = decision.count
        return data


def _decisions(tally: Tally) -> tuple[Decision, ...]:
    rows: dict[tuple[Kind, str, str, int], Counter[str]] = {}
    for (crowd, outcome), count in tally.ended.items():
        row = rows.setdefault((outcome.kind, outcome.layer, outcome.reason, outcome.status), Counter())
        row[crowd] += count
    decisions = (Decision(*row, dict(crowds)) for row, crowds in rows.items())
    return tuple(sorted(decisions, key=_rank))


def _rank(decision: Decision) -> tuple[int, int]:
    known = decision.layer in LAYERS
    return (LAYERS.index(decision.layer) if known else len(LAYERS), -decision.count)
