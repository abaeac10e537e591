"""The vendor's quotas as questions to the store: all dimensions of one call together.

A quota of the policy becomes one or two limits of the store, shaped by how the vendor enforces
(`limits.paced`). Keys share the account's hash tag, so that one question stays one atomic call in a
cluster, and every service naming the account shares its state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from zoneinfo import ZoneInfo

from headworks.limits import paced
from headworks.limits.calendar import LONGEST_DAY, Calendar
from headworks.limits.shapes import Shape, Window
from headworks.policy.fields import ROLLING
from headworks.policy.profiles import Profile
from headworks.policy.settings import VendorSettings
from headworks.policy.units import Rate
from headworks.store.protocol import Ask, Correction

Cost = Mapping[str, int]
"""Units by dimension: "requests", "tokens", "input_tokens", "output_tokens"."""

SPREAD = 0.05
"""Seconds by which a booking bound by a model's own quota may lie ahead: the account's other models
wait behind it meanwhile, so it must be short."""


DAY = 86400.0
CLOCKS = 1.0
"""Seconds by which a pod's clock and the vendor's may differ."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit that the store keeps for us.

    paced     says how fast, and not only how many
    calendar  of a day that begins at midnight: the key is then one a day
    """

    name: str
    key: str
    unit: str
    shape: Shape
    paced: bool
    calendar: Calendar | None = None


@dataclass(frozen=True, slots=True)
class Payment:
    """What one question consumed: the cost, and when for, on the store's clock."""

    cost: dict[str, int]
    at_us: int


class Quota:
    """What one lane of a vendor (an account, or one of its models with a quota of its own) may use.

    now       the wall clock, for quotas of calendar days

    interval  seconds between two calls at the full rate of the tightest request limit (0: none)
    horizon   seconds ahead that a booking may lie
    units     the dimensions that are limited
    names     what verdicts call the limits
    """

    def __init__(
        self,
        vendor: str,
        settings: VendorSettings,
        profile: Profile,
        model: str = "",
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._now = now
        self.vendor, self.model = vendor, model
        tag = f"{{vendor:{settings.account}}}:{vendor}"
        self.gate_key = f"{tag}:gate"
        self._limits = list(_limits(tag, vendor, settings.quota, settings, profile))
        self.horizon = settings.limiter_timeout
        own = settings.models[model].quota if model in settings.models else ()
        if own:
            self._limits += _limits(f"{tag}:{model}", f"{vendor}:{model}", own, settings, profile)
            self.horizon = min(self.horizon, SPREAD)
        rates = [
            rate for rate in (*settings.quota, *own) if rate.unit == "requests" and not rate.counted
        ]
        share = settings.share
        self.interval = max((rate.period / (rate.amount * share) for rate in rates), default=0.0)
        self.units = frozenset(limit.unit for limit in self._limits)
        self.names = frozenset(limit.name for limit in self._limits)
        self._daily = any(limit.calendar is not None for limit in self._limits)

    def asks(self, cost: Cost) -> tuple[Ask, ...]:
        """The question's limits for a call of this cost; dimensions it does not use are left out."""
        return tuple(
            Ask(limit.name, limit.key, limit.shape, cost[limit.unit])
            for limit in (self._today() if self._daily else self._limits)
            if cost.get(limit.unit, 0) > 0
        )

    def _today(self) -> Iterator[Limit]:
        """The limits as they are now: those of a calendar day under the days a send may fall into."""
        now = self._now()
        for limit in self._limits:
            if limit.calendar is None:
                yield limit
            else:
                for day in limit.calendar.days(now, self.horizon):
                    yield replace(limit, key=f"{limit.key}:{day}")

    def sooner(self, wait: float) -> float:
        """When to ask again after a refusal: in `wait` seconds, or sooner if a day is over then."""
        now = self._now() if self._daily else None
        turns = (limit.calendar.turns(now) for limit in self._limits if now and limit.calendar)
        return min((wait, *turns))

    def spacing(self, cost: Cost) -> float:
        """Seconds between two calls of this cost when they use the whole of the tightest limit."""
        return max(
            (
                limit.shape.period_us / 1e6 / limit.shape.limit * cost.get(limit.unit, 0)
                for limit in self._limits
                if limit.paced
            ),
            default=0.0,
        )

    def corrections(self, delta: Cost, paid: Payment) -> tuple[Correction, ...]:
        """What to settle when a payment turned out `delta` too low (or, negative, too high)."""
        return tuple(
            Correction(limit.key, limit.shape, delta[limit.unit], paid.at_us)
            for limit in (self._today() if self._daily else self._limits)
            if delta.get(limit.unit, 0) != 0
        )


def _limits(
    tag: str, name: str, rates: tuple[Rate, ...], settings: VendorSettings, profile: Profile
) -> list[Limit]:
    limits: list[Limit] = []
    day = settings.day or profile.day
    for rate in rates:
        ours = replace(rate, amount=max(1, math.floor(rate.amount * settings.share)))
        if rate.period == DAY and day != ROLLING:
            calendar = Calendar(ZoneInfo(day), CLOCKS + settings.jitter)
            key = f"{tag}:{rate.unit}:{rate.period:g}:calendar"
            of_day = Window.of(ours.amount, LONGEST_DAY)
            limits.append(Limit(f"{name}:{rate}", key, rate.unit, of_day, False, calendar))
            continue
        bucket = profile.mechanism == "bucket"
        capacity = profile.capacity_of(ours)
        shapes = paced.enforce(
            ours.amount if bucket else capacity,
            profile.window_of(ours),
            mechanism=profile.mechanism,
            jitter=settings.jitter,
            lumpy=rate.unit != "requests" or rate.counted,
            burst=capacity,
        )
        for shape in shapes:
            key = f"{tag}:{rate.unit}:{rate.period:g}:{type(shape).__name__.lower()}"
            limits.append(Limit(f"{name}:{rate}", key, rate.unit, shape, not rate.counted))
    return limits


def minus(cost: Cost, other: Cost) -> dict[str, int]:
    """cost − other, dimension by dimension."""
    return {unit: cost.get(unit, 0) - other.get(unit, 0) for unit in {*cost, *other}}


def missing(wanted: Cost, booked: Cost) -> dict[str, int]:
    """What a booking lacks for a call: the positive part of wanted − booked."""
    return {unit: lack for unit, lack in minus(wanted, booked).items() if lack > 0}
