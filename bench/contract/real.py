"""The fleet as ten processes, five times overloaded: nothing is rejected, and the quota is used up.

Half of the demand reaches the first pod; figures are taken from the vendor's own count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from bench.claims import Claim, Control, Figure
from bench.contract.cells import PODS
from bench.contract.fleet import TENANTS, Outcome, drive, quantiles
from bench.contract.processes import COUNTED, MECHANISMS, SLIDING, Processes, processes
from bench.stage import Stage
from headworks.limits import paced

TRIES = 3
"""How often the fleet without J is given the chance to break the contract."""
USED, TRIPS = 0.97, 3.0
"""Of the bound, what must be used: of 250 calls one is 0.4 %, and what a busy machine wakes too late
for is given back. Trips to the store for each call served, settling included."""

KIND = "processes, "
"""How the names of these cells begin."""
EAGER, OFF = f"{KIND}without J", f"{KIND}off"


async def outcome(
    fleet: Processes, vendor: str, *, warm: float, seconds: float, seed: int, unlimited: bool = False
) -> dict[str, Any]:
    """Drive the pods and tell what came of it, with the same words as a cell in virtual time.

    late  bookings that pods came to too late, and gave back
    """
    crowd = fleet.crowd(vendor, unlimited=unlimited)
    cell = crowd.cell
    earlier = sum((await fleet.told(vendor))["rejected"].values())
    trips, late = fleet.trips(), _sum(await fleet.looks(), "late")
    driving = asyncio.ensure_future(drive(crowd, warm + seconds + 1, seed))
    await asyncio.sleep(warm)
    await fleet.looks()
    before = await fleet.told(vendor)
    await asyncio.sleep(seconds)
    after, looks = await fleet.told(vendor), await fleet.looks()
    driven = await driving
    end = await fleet.told(vendor)
    served = sum(driven.served[pod] for pod in range(PODS))
    took = after["seconds"] - before["seconds"]
    units = _units(after) - _units(before)
    utilisation = units / ((cell.tokens or cell.per_minute) * took / 60)
    bound = paced.utilisation(cell.window, cell.jitter, cell.mechanism)
    found = Outcome(
        rejected=sum(end["rejected"].values()) - earlier,
        utilisation=round(utilisation, 4),
        bound=round(bound, 4),
        of_bound=round(utilisation / bound, 4),
        trips=round((fleet.trips() - trips) / max(1, served), 3),
        served=served,
        waited=quantiles([wait for look in looks for wait in look["waits"]], 0.5, 0.9, 0.99),
        refused=quantiles(driven.refused, 0.5, 0.99),
        kept=round(sum(s > 0.05 for s in driven.refused) / max(1, len(driven.refused)), 4),
        jain_pods=round(driven.jain(range(PODS)), 4),
        jain_tenants=round(driven.jain([f"t{number}" for number in range(TENANTS)]), 4),
        share=round(driven.served[0] / max(1, served), 4),
        shapes=[],
    )
    return asdict(found) | {"late": _sum(await fleet.looks(), "late") - late}


def _units(stats: Mapping[str, Any]) -> int:
    """What the judge has accepted, in what it counts."""
    (used,) = stats["utilisation"].values()
    return int(used["accepted"])


def _sum(looks: list[dict[str, Any]], name: str) -> int:
    return sum(look[name] for look in looks)


async def kept(stage: Stage) -> Claim:
    """The fleet in processes, beside the same pods without the limiter and without J."""
    return judged(await cells(seed=stage.seed))


def judged(found: Mapping[str, dict[str, Any]]) -> Claim:
    """What the cells show. It is void where a control saw no rejection."""
    off, eager = (found[name]["rejected"] for name in (OFF, EAGER))
    ours = {name: cell for name, cell in found.items() if name not in (OFF, EAGER)}
    figures = [
        Figure(f"{name}: calls rejected", cell["rejected"], "==", 0, Control("limiter off", off))
        for name, cell in ours.items()
    ]
    unspared = Control("paced at L/W, without J", eager)
    rejected = found[f"{KIND}{SLIDING.name}"]["rejected"]
    figures.append(Figure(f"{KIND}{SLIDING.name}: calls rejected", rejected, "==", 0, unspared))
    for name, cell in ours.items():
        figures += [
            Figure(f"{name}: utilisation of its bound", cell["of_bound"], ">=", USED),
            Figure(f"{name}: store round trips per success", cell["trips"], "<=", TRIPS),
        ]
    return Claim(
        "contract-processes",
        "ten pods as processes on one quota, five times overloaded: the vendor rejects nothing, its "
        "quota is used up",
        tuple(figures),
        {"cells": dict(found)},
    )


async def cells(*, seed: int) -> dict[str, dict[str, Any]]:
    """Ours against two mechanisms, and the same pods without the limiter and without J."""
    async with processes() as fleet:
        found = {}
        for vendor in ("sliding", "bucket"):
            found |= await _cell(fleet, vendor, warm=12.0, seconds=25.0, seed=seed)
        return found | await _controls(fleet, "sliding", seconds=25.0, seed=seed)


async def every_cell(*, seed: int, say: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Ours against every mechanism, a minute each, and the controls; about a quarter of an hour.

    What a bucket of a minute holds at first is used up after fifteen seconds.
    """
    found: dict[str, dict[str, Any]] = {}
    async with processes(vendors=COUNTED, policy=MECHANISMS) as fleet:
        for vendor in list(COUNTED)[:-1]:
            found |= await _cell(fleet, vendor, warm=20.0, seconds=60.0, seed=seed)
            say(f"{list(found.items())[-1]}\n")
        return found | await _controls(fleet, "sliding-10", seconds=60.0, seed=seed)


async def _cell(fleet: Processes, vendor: str, **driven: Any) -> dict[str, dict[str, Any]]:
    return {f"{KIND}{fleet.crowd(vendor).cell.name}": await outcome(fleet, vendor, **driven)}


async def _controls(
    fleet: Processes, off: str, *, seconds: float, seed: int
) -> dict[str, dict[str, Any]]:
    """The same pods without J, and against that vendor without the limiter."""
    for again in range(TRIES):  # the first rejection pauses the fleet: there are never many
        eager = await outcome(fleet, "eager", warm=5.0, seconds=seconds, seed=seed + again)
        if eager["rejected"]:
            break
    unlimited = await outcome(fleet, off, warm=0.0, seconds=8.0, seed=seed, unlimited=True)
    return {EAGER: eager, OFF: unlimited}
