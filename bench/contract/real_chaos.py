"""The fleet of processes when something goes wrong with pods, store, callers and vendors in turn.

Two vendors are offered five times their quota at once, all of it streamed, and a fifth of the callers
leave. Each fault is followed by quiet until a window of the quota is used again. Then demand ends, and
what is left over is counted, as it was counted in the middle.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from bench.claims import Claim, Control, Figure
from bench.contract.cells import PODS
from bench.contract.chaos import WINDOW, recovered
from bench.contract.faults import (
    ASTRAY,
    BOTH,
    CUT,
    DEAD,
    KILLED,
    ROLLED,
    SICK,
    STILL,
    Scene,
    raised,
)
from bench.contract.fleet import drive
from bench.contract.left import Left, left
from bench.contract.processes import VENDORS, Processes
from bench.stage import Stage
from headworks.local import probe

ABORTING = 0.2
USED = 0.9
"""The part of its bound that a window must be used to after a fault."""
POOL = 6.0
"""Seconds after which a pool throws out a connection that was not used."""
LET_GO = 30.0
"""Seconds that the last of what is held may take."""
OFF = 4.0
"""Seconds of the same demand without the limiter."""

LEFT = {
    "held": "slots, places in line, bookings and calls of pods",
    "tasks": "tasks, beyond those of an idle pod",
    "sockets": "connections nobody needs",
    "calls": "calls the vendors are busy with",
    "dead": "dead processes that the store counts",
    "leases": "leases in the store",
}


async def shaken(seed: int) -> dict[str, Any]:
    """All scenes in one run, and what was left over in the middle of it and at its end."""
    async with raised() as (fleet, all_scenes):
        await _each(fleet)
        idle = await _idle(fleet)
        async with _demand(fleet, seed):
            await _recovered(fleet)
            middle = asdict(await left(fleet, BOTH, idle))
            scenes = {name: await _act(fleet, scene) for name, scene in all_scenes.items()}
        await asyncio.sleep(POOL)
        served = await _each(fleet)
        end = await _let_go(fleet, idle)
        stats = {vendor: await fleet.told(vendor) for vendor in BOTH}
        rejected = await _rejected(fleet)
        off = await _unlimited(fleet, seed)
    return {
        "scenes": scenes,
        "middle": middle | {name: scenes[DEAD][name] for name in ("dead", "leases")},
        "left": asdict(end),
        "rejected": rejected,
        "off": {vendor: off[vendor] - rejected[vendor] for vendor in BOTH},
        "accepted by the second": {vendor: one["series"] for vendor, one in stats.items()},
        "streams left": sum(one["streams_closed_early"] for one in stats.values()),
        "served": served,
        "idle tasks": idle,
    }


async def _act(fleet: Processes, scene: Scene) -> dict[str, Any]:
    """What the scene tells, the calls rejected since its beginning, and how soon all was as before."""
    clock = asyncio.get_running_loop()
    before, began = await _rejected(fleet), clock.time()
    told = await scene()
    over = clock.time()
    took = await _recovered(fleet)
    more = {vendor: now - before[vendor] for vendor, now in (await _rejected(fleet)).items()}
    return {**told, "seconds": round(over - began, 1), "recovered": took, "rejected": more}


async def _recovered(fleet: Processes) -> float | None:
    """Seconds until every vendor's window is used again; None if that takes longer than one."""
    found = await asyncio.gather(*(_used_again(fleet, vendor) for vendor in BOTH))
    in_time = [took for took in found if took is not None]
    return max(in_time) if len(in_time) == len(found) else None


async def _used_again(fleet: Processes, vendor: str) -> float | None:
    stats = await fleet.told(vendor)
    over, now = stats["seconds"], stats["seconds"]
    while now < over + 2 * WINDOW + 2:
        await asyncio.sleep(1)
        stats = await fleet.told(vendor)
        now = stats["seconds"]
        took = recovered(stats["series"][:-1], over, VENDORS[vendor], USED)
        if took <= WINDOW:
            return took
    return None


@asynccontextmanager
async def _demand(fleet: Processes, seed: int) -> AsyncIterator[None]:
    """Meanwhile, calls at both vendors; at the end everybody leaves at once."""
    driving = []
    for number, vendor in enumerate(BOTH):
        crowd = fleet.crowd(vendor)
        crowd.aborting = ABORTING
        driving.append(asyncio.ensure_future(drive(crowd, float("inf"), seed + number)))
    try:
        yield
    finally:
        broken = [one for one in driving if one.done()]
        for one in driving:
            one.cancel()
        await asyncio.wait(driving)
    for one in broken:
        one.result()


async def _each(fleet: Processes) -> float:
    """One call through each pod to each vendor; the part that was served."""
    crowds = [fleet.crowd(vendor) for vendor in BOTH]
    calls = [crowd.send(pod, 1) for crowd in crowds for pod in range(PODS)]
    return (await asyncio.gather(*calls)).count(200) / len(calls)


async def _idle(fleet: Processes) -> int:
    """The tasks of a pod that has nothing to do, the question itself included."""
    looks = []
    for _ in range(5):
        await asyncio.sleep(0.5)
        looks.append([look["tasks"] for look in await fleet.looks()])
    return max(map(min, zip(*looks, strict=True)))


async def _let_go(fleet: Processes, idle: int) -> Left:
    """What is left over, once it is nothing or there was time enough."""
    found = await left(fleet, BOTH, idle)

    async def nothing() -> bool:
        nonlocal found
        found = await left(fleet, BOTH, idle)
        return not any(asdict(found).values())

    await probe.wait_until(nothing, timeout=LET_GO)
    return found


async def _rejected(fleet: Processes) -> dict[str, int]:
    return {vendor: sum((await fleet.told(vendor))["rejected"].values()) for vendor in BOTH}


async def _unlimited(fleet: Processes, seed: int) -> dict[str, int]:
    """The calls rejected by then, once nobody limits them."""
    crowds = [fleet.crowd(vendor, unlimited=True) for vendor in BOTH]
    await asyncio.gather(*(drive(crowd, OFF, seed) for crowd in crowds))
    return await _rejected(fleet)


async def kept(stage: Stage) -> Claim:
    """Ten processes, and what may go wrong with them."""
    return judged(await shaken(stage.seed))


def judged(found: Mapping[str, Any]) -> Claim:
    """What the run shows. It is void where the same counts saw nothing in the middle of it."""
    scenes = found["scenes"]
    nine, three = (scenes[SICK][f"moves, {vendor}"] for vendor in BOTH)
    figures = [
        *(
            Figure(
                f"{VENDORS[vendor].name}: calls rejected",
                found["rejected"][vendor],
                "==",
                0,
                Control("limiter off", found["off"][vendor]),
            )
            for vendor in BOTH
        ),
        Figure("90 % fail: moves of the breaker (opens, closes)", nine, "==", 2, Control("30 %", three)),
        Figure("30 % fail: moves of the breaker", three, "==", 0, Control("90 %", nine)),
        *(
            Figure(f"{name}: seconds until a window is used", scene["recovered"], "<=", WINDOW)
            for name, scene in scenes.items()
        ),
        *(
            Figure(
                f"{name}: pods that go without the store",
                scenes[name]["degraded"],
                "==",
                pods,
                Control("before", scenes[name]["before"]),
            )
            for name, pods in ((STILL, PODS), (CUT, len(ASTRAY)))
        ),
        *(
            Figure(
                f"left over: {about}",
                found["left"][name],
                "==",
                0,
                Control("in the middle", found["middle"][name]),
            )
            for name, about in LEFT.items()
        ),
        Figure(
            "pods that came back as other processes",
            scenes[DEAD]["replaced"] + scenes[ROLLED]["replaced"],
            "==",
            len(KILLED) + PODS,
        ),
        Figure("streams that were left while they ran", found["streams left"], ">=", PODS),
        Figure("one call more through each pod to each vendor: served", found["served"], "==", 1),
    ]
    return Claim(
        "chaos-processes",
        "ten pods as processes, five times overloaded: pods are killed and restarted, the store stands "
        "still or is out of reach, callers leave, vendors fail; nothing is rejected or lost, and the "
        "quota is soon used again",
        tuple(figures),
        dict(found),
    )
