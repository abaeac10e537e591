"""What the fleet of processes holds on to: in its pods, at its vendors, in its store."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import httpx2

from bench.contract import sockets
from bench.contract.processes import Processes
from headworks.store.forms import PREFIX, gate_key
from headworks.store.scripts import script

GATE = (
    script("gate", "clock", "shapes").source
    + """
local gate = make_gate().read(redis.call('GET', KEYS[1]), 0)
return {gate.epoch, gate.open}
"""
)
STORE = 2
"""Connections to the store that a pod may have open."""
IDLE = 1
"""To a vendor, after a single call has thrown out what a pool had kept for too long."""


@dataclass(frozen=True, slots=True)
class Left:
    """Of all pods together, and 0 each once nothing is left over.

    held     slots taken, places in line, bookings and calls
    tasks    beyond those of a pod that has nothing to do
    sockets  that nobody needs any more
    calls    that a vendor is still busy with
    dead     processes that the store counts and that are no more
    leases   places in the store that somebody holds
    """

    held: int
    tasks: int
    sockets: int
    calls: int
    dead: int
    leases: int


async def left(fleet: Processes, vendors: Collection[str], idle: int) -> Left:
    """What is left over at this moment; `idle` tasks are what a pod has anyway."""
    looks = await fleet.looks()
    stats = [await fleet.told(vendor) for vendor in vendors]
    return Left(
        held=sum(look[name] for look in looks for name in ("slots", "waiting", "bookings", "calls")),
        tasks=sum(max(0, look["tasks"] - idle) for look in looks),
        sockets=_sockets(fleet, vendors),
        calls=sum(one["in_flight"] for one in stats),
        dead=len(counted(fleet) - alive(fleet)),
        leases=leased(fleet),
    )


def _sockets(fleet: Processes, vendors: Collection[str]) -> int:
    pools = dict.fromkeys((fleet.judge(vendor) for vendor in vendors), IDLE)
    pools |= dict.fromkeys(fleet.stores, STORE)
    found = 0
    for pod in fleet.stack.pods():
        own = {httpx2.URL(url).port or 0 for url in (pod.url, pod.management)}
        found += sockets.lost(sockets.of(pod.pid or 0), own, pools)
    return found


def alive(fleet: Processes) -> set[int]:
    """The pods' process ids."""
    return {pod.pid for pod in fleet.stack.pods() if pod.pid is not None}


def counted(fleet: Processes) -> set[int]:
    """The process ids of all whose beats still count, as the store has them."""
    store: Any = fleet.store.client
    seconds, us = store.time()
    beats = (
        beat
        for key in store.scan_iter(f"{PREFIX}c:*")
        for beat in store.zrangebyscore(key, seconds * 1_000_000 + us, "+inf")
    )
    return {int(beat.partition(b"-")[0]) for beat in beats}


def leased(fleet: Processes) -> int:
    """Leases that have not run out."""
    store: Any = fleet.store.client
    seconds, us = store.time()
    return sum(
        int(lease.partition(b":")[0]) > seconds * 1_000_000 + us
        for key in store.scan_iter(f"{PREFIX}l:*")
        for lease in store.hvals(key)
    )


def gate(fleet: Processes, vendor: str) -> tuple[int, int]:
    """A breaker as the store has it: its epoch, which rises with each move; and until when it is open,
    0: closed."""
    key = gate_key(f"{{vendor:{vendor}}}:{vendor}:gate")
    found: Any = fleet.store.client.eval(GATE, 1, key)
    epoch, open_until = found
    return epoch, open_until
