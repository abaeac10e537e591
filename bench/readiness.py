"""Readiness under overload, in virtual time: pods that leave when they are full, and pods that shed.

Every pod has places for some requests and refuses what comes above; an edge asks each pod whether it is
ready, as the rendered nginx does, and spreads what comes over those that are. They are offered half as
much again as all of them together can do. Two controls: `flip`, a pod is ready while it is not full; and
`places`, a pod may leave while it holds one of the few places, whoever else is under pressure.

    python -m bench.readiness [--quick] [--seed N]      prints the outcomes as JSON
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from dataclasses import asdict, dataclass
from typing import Literal

from headworks.admission import Slot, Slots
from headworks.current import Current
from headworks.errors import Refused
from headworks.health import Health
from headworks.policy.settings import GatewaySettings, HealthSettings
from headworks.store.memory import MemoryStore
from headworks.telemetry import Telemetry
from headworks.testing import loop
from headworks.works.permit import LEASE, LEAVING, LeavePermit

PLACES = 20
"""Requests that one pod serves at once."""
SERVICE = 0.25
"""Seconds that one takes: a pod can do `PLACES / SERVICE` a second."""
CHECKED_EVERY = GatewaySettings().check_interval
"""Seconds between two questions of the edge."""
OVERLOAD = 1.5
WARM = 30.0
"""Seconds before counting starts: longer than a pod must be full before it may ask to leave."""

Readiness = Literal["ours", "flip", "places"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a fleet did under steady overload.

    goodput      requests served a second
    of_capacity  goodput / what all pods together can do
    away         pods that were not ready, on average
    nobody       part of the requests that found no ready pod
    """

    goodput: float
    of_capacity: float
    away: float
    nobody: float


class Places(LeavePermit):
    """A permit that knows no crowd."""

    async def hold(self) -> bool:
        held = await self._store.lease(self._key, holder=self._holder, limit=self._places(), ttl=LEASE)
        return held > 0


class _Pod:
    """A pod's places, its readiness, and what the edge makes of it."""

    def __init__(self, number: int, pods: int, store: MemoryStore, readiness: Readiness, seed: int):
        rng = random.Random(seed + number)
        self.slots = Slots(PLACES, rng=rng)
        self._readiness = readiness
        self.health = Health(
            HealthSettings(),
            full_for=lambda: self.slots.statistics().full_for,
            permit=self._permit(store, f"pod-{number}", int(LEAVING * pods)),
            facts=dict,
            telemetry=Telemetry(),
            rng=rng,
        )
        self.health.serve()
        self.served, self._said_yes = 0, True

    def _permit(self, store: MemoryStore, holder: str, places: int) -> LeavePermit | None:
        kind = Places if self._readiness == "places" else LeavePermit
        return kind(store, name="fleet", holder=holder, places=lambda: places) if places else None

    @property
    def ready(self) -> bool:
        if self._readiness == "flip":
            return self.slots.statistics().in_flight < PLACES
        return self.health.ready

    @property
    def chosen(self) -> bool:
        """Whether the edge, one without a panic threshold, sends requests here."""
        return self._said_yes

    async def asked(self) -> None:
        """The edge asks on its timer, for ever."""
        while True:
            self._said_yes = self.ready  # an answer is believed at once
            await asyncio.sleep(CHECKED_EVERY)

    async def serve(self) -> None:
        try:
            slot = self.slots.claim(Current(), asyncio.get_running_loop().time())
        except Refused:
            return
        assert isinstance(slot, Slot)  # there is no line
        await asyncio.sleep(SERVICE)
        slot.end()
        self.served += 1


async def _run(pods: int, readiness: Readiness, seconds: float, seed: int) -> Outcome:
    store = MemoryStore()
    fleet = [_Pod(number, pods, store, readiness, seed) for number in range(pods)]
    capacity = pods * PLACES / SERVICE
    clock, rng = asyncio.get_running_loop(), random.Random(seed)
    watching = [clock.create_task(work) for pod in fleet for work in (pod.asked(), pod.health.watch())]
    await asyncio.sleep(rng.uniform(0, 0.1))
    began, before = clock.time() + WARM, 0
    sent = nobody = away = 0
    async with asyncio.TaskGroup() as group:
        while clock.time() < began + seconds:
            if clock.time() < began:
                before = sum(pod.served for pod in fleet)
                sent = nobody = away = 0
            chosen = [pod for pod in fleet if pod.chosen]
            sent += 1
            away += pods - len(chosen)
            nobody += not chosen
            if chosen:
                group.create_task(chosen[sent % len(chosen)].serve())
            await asyncio.sleep(rng.expovariate(OVERLOAD * capacity))
        goodput = (sum(pod.served for pod in fleet) - before) / seconds
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)
    return Outcome(
        goodput=round(goodput, 1),
        of_capacity=round(goodput / capacity, 4),
        away=round(away / sent, 2),
        nobody=round(nobody / sent, 4),
    )


def run(pods: int, readiness: Readiness, *, seconds: float = 60.0, seed: int = 1) -> Outcome:
    """Run one fleet in virtual time; the same seed gives the same outcome."""
    return loop.run(_run(pods, readiness, seconds, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    seconds = 30.0 if options.quick else 120.0
    outcomes = {
        f"{pods} pods, {readiness}": asdict(run(pods, readiness, seconds=seconds, seed=options.seed))
        for pods in (3, 10)
        for readiness in ("ours", "flip", "places")
    }
    sys.stdout.write(json.dumps(outcomes, indent=2) + "\n")


if __name__ == "__main__":
    main()
