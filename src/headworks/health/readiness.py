"""Whether this pod should get traffic, and why not.

Starting and draining pods are not ready. A pod under pressure (full for long, or failing by its own
fault) may leave only with a permit, of which the fleet has few, and none when many are under pressure:
when everyone is full, leaving only makes the others fuller, and the admission layer sheds better than a
readiness that flips. Without a permit, or without anyone to ask for one, it stays. Having left, it keeps
the permit alive, stays away for a minimum time, and comes back once the pressure is well gone, or at
once when the permit is.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final, Protocol

from headworks.health.errors import ErrorRate
from headworks.policy.settings import HealthSettings
from headworks.telemetry import Changed, Event, Served, Telemetry

log = logging.getLogger("headworks")

TICK: Final = 1.0
"""Seconds between two looks at the pressure."""
HOLD: Final = (5.0, 7.5)
"""Seconds a pod stays away at least, drawn evenly so that pods do not return in step."""
LOOKS: Final = 3
"""Looks in a row that must permit it before a pod leaves: time for others to say that they are full."""
EASED: Final = 0.5
"""The part of `error_rate_high` below which a failing pod counts as recovered."""


class Permit(Protocol):
    """One of few places in which pods may be away for load. Taken under pressure, before leaving."""

    async def hold(self) -> bool:
        """Take it, or keep it alive; whether the pod may be away."""
        ...

    async def give_back(self) -> None:
        """Return it, also when it is not certain that it was had."""
        ...


class Stage(StrEnum):
    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class Health:
    """The pod's readiness, and a telemetry sink: it counts the answers it hears of.

    settings   thresholds
    full_for   seconds for which the pod has been full, 0 when it is not
    permit     to leave for load; None: never leaves for load
    facts      what else `/ready` shows
    rng        draws how long to stay away
    """

    def __init__(
        self,
        settings: HealthSettings,
        *,
        full_for: Callable[[], float],
        permit: Permit | None,
        facts: Callable[[], Mapping[str, Any]],
        telemetry: Telemetry,
        rng: random.Random,
    ) -> None:
        self._settings, self._full_for, self._permit = settings, full_for, permit
        self._facts, self._telemetry, self._rng = facts, telemetry, rng
        self._errors = ErrorRate()
        self.hears = {Served: self._errors.record}
        self._stage = Stage.STARTING
        self._away: str | None = None
        self._back_at = 0.0
        self._permitted_looks = 0
        self._asked = False

    @property
    def ready(self) -> bool:
        return self._stage is Stage.SERVING and self._away is None

    def record(self, event: Event) -> None:
        """Hear of an event (as a sink): an answer counts."""
        if isinstance(event, Served):
            self._errors.record(event)

    def start(self) -> None:
        """The pod starts up (again)."""
        self._enter(Stage.STARTING)

    def serve(self) -> None:
        """Start-up is over."""
        if self._stage is Stage.STARTING:
            self._enter(Stage.SERVING)

    def drain(self) -> None:
        """The pod is leaving for good."""
        if self._stage is not Stage.DRAINING:
            self._enter(Stage.DRAINING)

    def report(self) -> tuple[bool, dict[str, Any]]:
        """Whether the pod is ready, and what `/ready` says about it."""
        reasons = [] if self._stage is Stage.SERVING else [self._stage.value]
        if self._away is not None:
            reasons.append(self._away)
        pressure = self._pressure(self._settings.error_rate_high)
        body = {"ready": self.ready, "reasons": reasons, "pressure": pressure, **self._facts()}
        return self.ready, body

    async def watch(self) -> None:
        """Look at the pressure once a second, until cancelled."""
        while True:
            try:
                await self.step()
            except Exception:  # a permit that cannot be asked for must not end the watch
                log.exception("readiness could not be looked at")
            await asyncio.sleep(TICK)

    async def step(self) -> None:
        """Leave, stay away or come back, as the pressure and the permit have it."""
        now, away = asyncio.get_running_loop().time(), self._away is not None
        pressure = self._pressure(self._settings.error_rate_high * (EASED if away else 1.0))
        pressed = pressure is not None or (away and now < self._back_at)
        wanted = pressed and self._stage is Stage.SERVING
        permitted = wanted and await self._permitted()
        self._permitted_looks = self._permitted_looks + 1 if permitted else 0
        if away and not permitted:
            self._away = None
            self._telemetry.emit(Changed("ready", self._stage.value))
        elif not away and self._permitted_looks >= LOOKS and self._stage is Stage.SERVING:
            self._away = pressure
            self._back_at = now + self._rng.uniform(*HOLD)
            self._telemetry.emit(Changed("ready", "away", pressure or ""))
        if not wanted:
            await self._give_back()

    async def close(self) -> None:
        """Give back what is held."""
        self._away = None
        await self._give_back()

    async def _permitted(self) -> bool:
        """Whether the permit is held; one that cannot be asked for is not."""
        if self._permit is None:
            return False
        self._asked = True  # before it is: a cancelled question may have taken it
        try:
            return await self._permit.hold()
        except Exception:
            log.exception("the leave-permit cannot be asked for: the pod stays")
            return False

    async def _give_back(self) -> None:
        if self._permit is not None and self._asked:
            await self._permit.give_back()
            self._asked = False

    def _pressure(self, error_rate: float) -> str | None:
        if self._full_for() >= self._settings.saturated_for:
            return "saturated"
        rate, samples = self._errors.measure(asyncio.get_running_loop().time())
        if samples >= self._settings.min_samples and rate >= error_rate:
            return "failing"
        return None

    def _enter(self, stage: Stage) -> None:
        self._stage = stage
        self._telemetry.emit(Changed("ready", stage.value))
