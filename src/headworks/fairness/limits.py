"""Which limits a request is held to, and what they are called in the store."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from headworks.fairness.routes import Matched, normalised
from headworks.identity import Identity
from headworks.limits.shapes import Bucket, Shape, Window
from headworks.policy.settings import FairnessSettings, WhenDown
from headworks.policy.units import Rate
from headworks.store.protocol import Ask, FinalAsk
from headworks.verdict import Verdict

LONGEST: Final = 128
"""Characters of a route's template that go into a key; a longer one is hashed."""


@dataclass(frozen=True, slots=True)
class _Ceiling:
    shape: Shape
    shared: bool


def shape_of(rate: Rate) -> Shape:
    """The shape of a rate: "10/min" is a window, "10/min burst 3" a bucket."""
    if rate.burst is None:
        return Window.of(rate.amount, rate.period)
    return Bucket.of(rate.amount, rate.period, burst=rate.burst)


def when_down_of(settings: FairnessSettings) -> dict[str, WhenDown]:
    """What the policy says of single limits without the store, by the names that verdicts call them."""
    tiers = {f"tier:{name}": tier.when_down for name, tier in settings.tiers.items()}
    endpoints = {f"endpoint:{normalised(path)}": at.when_down for path, at in settings.endpoints.items()}
    return {name: way for name, way in (tiers | endpoints).items() if way is not None}


def near(asks: Sequence[Ask], verdict: Verdict) -> int:
    """Units just taken beyond four fifths of the limit that is fullest; of a bucket, of its burst."""
    fullest = verdict.tightest
    if not verdict.allowed or verdict.degraded or fullest is None:
        return 0
    ask = next(ask for ask in asks if ask.name == fullest.name)
    most = ask.shape.burst if isinstance(ask.shape, Bucket) else ask.shape.limit
    return max(0, min(ask.cost, most - fullest.remaining - most * 4 // 5))


class Limits:
    """The policy's limits as questions to the store.

    What a request was charged is never given back. Every key of one caller has the same tag in braces,
    so that a cluster keeps them together. The service's name is part of it: services that share a
    store share no counts.
    """

    def __init__(self, settings: FairnessSettings, *, service: str) -> None:
        self._service = service
        self._tiers = {name: shape_of(tier.rate) for name, tier in settings.tiers.items()}
        self._endpoints: Mapping[str, _Ceiling] = {
            normalised(path): _Ceiling(shape_of(entry.rate), entry.scope == "all")
            for path, entry in settings.endpoints.items()
        }
        self._marked: dict[Rate, _Ceiling] = {}

    def asks(self, identity: Identity, matched: Matched | None) -> tuple[Ask, ...]:
        """The limits of a caller on a route: its tier's, and the endpoint's where there is one."""
        user = f"{{user:{self._service}:{identity.tenant}}}"
        cost = matched.cost if matched else 1
        tier = FinalAsk(f"tier:{identity.tier}", f"{user}:tier", self._tiers[identity.tier], cost)
        ceiling = self._ceiling(matched) if matched else None
        if matched is None or ceiling is None:
            return (tier,)
        owner = f"{{all:{self._service}}}" if ceiling.shared else user
        key = f"{owner}:endpoint:{_bounded(matched.template)}"
        return tier, FinalAsk(f"endpoint:{matched.template}", key, ceiling.shape, cost)

    def paths(self) -> set[str]:
        """The templates that the policy names."""
        return set(self._endpoints)

    def _ceiling(self, matched: Matched) -> _Ceiling | None:
        ceiling = self._endpoints.get(matched.template)
        if ceiling is None and matched.rate is not None:
            ceiling = self._marked.get(matched.rate)
            if ceiling is None:  # one per rate written in the code
                ceiling = self._marked[matched.rate] = _Ceiling(shape_of(matched.rate), shared=False)
        return ceiling


def _bounded(template: str) -> str:
    if len(template) <= LONGEST:
        return template
    return hashlib.blake2b(template.encode(), digest_size=16).hexdigest()
