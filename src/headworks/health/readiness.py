"""Whether this pod should get traffic, and why not.

Starting and draining pods are not ready. A pod under pressure (full for long, or failing by its own
fault) may leave only with a permit, of which the fleet has few: when everyone is full, leaving only
makes the others fuller, and the admission layer sheds better than a readiness that flips. Without a
permit, or without anyone to ask for one, it stays. Having left, it holds the permit, stays away for a
minimum time, and comes back only once the pressure is well gone.
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
EASED: Final = 0.5
"""The part of `error_rate_high` below which a failing pod counts as recovered."""


class Permit(Protocol):
    """One of few places in which pods may be away for load."""

    async def hold(self) -> bool:
        """Take it, or keep it; False when there is none to have."""
        ...

    async def give_back(self) -> None: ...


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
        self._stage = Stage.STARTING
        self._away: str | None = None
        self._back_at = 0.0

    @property
    def ready(self) -> bool:
        return self._stage is Stage.SERVING and self._away is None

    def record(self, event: Event) -> None:
        """Hear of an answer (as a sink)."""
        if isinstance(event, Served):
            self._errors.record(event.status, asyncio.get_running_loop().time())

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
        if self._away is None:
            cause = self._pressure(self._settings.error_rate_high)
            if cause is not None and self._stage is Stage.SERVING and await self._permitted():
                self._away = cause
                self._back_at = asyncio.get_running_loop().time() + self._rng.uniform(*HOLD)
                self._telemetry.emit(Changed("ready", "away", cause))
            return
        eased = self._pressure(self._settings.error_rate_high * EASED) is None
        held = asyncio.get_running_loop().time() >= self._back_at
        if (eased and held) or not await self._permitted():
            await self._return()

    async def close(self) -> None:
        """Give back what is held."""
        if self._away is not None:
            await self._return()

    async def _return(self) -> None:
        self._away = None
        self._telemetry.emit(Changed("ready", self._stage.value))
        if self._permit is not None:
            await self._permit.give_back()

    async def _permitted(self) -> bool:
        return self._permit is not None and await self._permit.hold()

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
