"""What goes wrong with the fleet of processes: pods, the store, the way to it, vendors."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from bench.contract.left import alive, counted, gate, leased
from bench.contract.processes import Processes, processes
from bench.rolling import restart
from bench.stage import ROOT, Missing, stop
from headworks.local import probe
from headworks.local.parts import LOOPBACK
from headworks.store.valkey import ValkeyStore
from headworks.works.permit import LeavePermit

FAILING, STUMBLING = "sliding", "bucket"
"""The vendor that fails nine of ten calls, and the one that fails three meanwhile."""
BOTH = (FAILING, STUMBLING)
FAILS, STUMBLES = 40.0, 60.0
"""Seconds for which they do. The breaker stays open for as long as the first fails, so that no probe can
meet a failure, and to open once is what it must do."""
ALLOWED = 0.25
"""Seconds of jitter that the policy reckons with here, five times what is injected: pods that start take
the processors from everybody else, the vendors included."""
KILLED = ("pod-4", "pod-8")
ASTRAY = ("pod-2", "pod-5", "pod-9")
"""Pods that reach the store by a way of their own, which is cut."""
STANDS_STILL, CUT_OFF = 5.0, 20.0

DEAD, ROLLED, STILL, CUT, SICK = (
    "two pods killed",
    "rolling restart",
    "store stands still 5 s",
    "three pods cut off",
    "vendors fail",
)
Scene = Callable[[], Awaitable[dict[str, int]]]


@asynccontextmanager
async def raised() -> AsyncIterator[tuple[Processes, dict[str, Scene]]]:
    """The fleet, some of whose pods reach the store by a detour, and what can be done to it."""
    with socket.create_server((LOOPBACK, 0)) as listening:
        port = listening.getsockname()[1]
        environ = {
            "CONTRACT_ASTRAY": ",".join(ASTRAY),
            "CONTRACT_DETOUR": f"valkey://{LOOPBACK}:{port}",
            f"HEADWORKS_VENDORS__{FAILING.upper()}__BREAKER__OPEN_FOR": f"{FAILS:g}s",
        }
        environ |= {f"HEADWORKS_VENDORS__{vendor.upper()}__JITTER": f"{ALLOWED:g}s" for vendor in BOTH}
        async with processes(environ) as fleet, _detour(listening, fleet.store.port) as detour:
            fleet.stores.add(port)
            yield fleet, _scenes(fleet, detour)


@asynccontextmanager
async def _detour(listening: socket.socket, to: int) -> AsyncIterator[int]:
    """A way from that socket to a port, as a process of its own; its id."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.contract.detour", str(listening.fileno()), str(to)),
        pass_fds=(listening.fileno(),),
        cwd=ROOT,
        start_new_session=True,
    )
    port = listening.getsockname()[1]
    try:
        if not await probe.wait_until(lambda: probe.valkey_answers(LOOPBACK, port), timeout=20.0):
            raise Missing("the detour to the store did not start")
        yield process.pid
    finally:
        await stop(process)


def _scenes(fleet: Processes, detour: int) -> dict[str, Scene]:
    store = fleet.stack.part("valkey").pid
    if store is None:
        raise Missing("the store is not running")
    return {
        DEAD: partial(_killed, fleet),
        ROLLED: partial(_rolled, fleet),
        STILL: partial(_stands_still, fleet, store, STANDS_STILL),
        CUT: partial(_stands_still, fleet, detour, CUT_OFF),
        SICK: partial(_sick, fleet),
    }


async def _killed(fleet: Processes) -> dict[str, int]:
    """Two pods die at once, one of which may just be away for load; what the store has of them is looked
    at before it can run out."""
    before = alive(fleet)
    await _may_be_away(fleet, KILLED[0])
    dead = {fleet.stack.part(name).pid or 0 for name in KILLED}
    restarting = [asyncio.ensure_future(restart(fleet.stack, name, signal.SIGKILL)) for name in KILLED]
    await asyncio.sleep(0)  # both have been sent their signal
    found = {"dead": len(counted(fleet) & dead), "leases": leased(fleet)}
    await asyncio.gather(*restarting)
    return found | {"replaced": len(before - alive(fleet))}


async def _may_be_away(fleet: Processes, pod: str) -> None:
    """Take the pod's place among those that may be away for load, as it does when it is full."""
    store = ValkeyStore(f"valkey://{LOOPBACK}:{fleet.store.port}")
    try:
        await LeavePermit(store, name="contract", holder=pod, places=lambda: len(KILLED)).hold()
    finally:
        await store.aclose()


async def _rolled(fleet: Processes) -> dict[str, int]:
    """Every pod is told to go and replaced, one after the other."""
    before = alive(fleet)
    for pod in fleet.stack.pods():
        await restart(fleet.stack, pod.name, signal.SIGTERM)
    return {"replaced": len(before - alive(fleet))}


async def _stands_still(fleet: Processes, pid: int, seconds: float) -> dict[str, int]:
    """The store, or the way to it, runs no further for a while: whoever asks is not answered."""
    up = await fleet.stack.degraded()
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
        return {"before": up, "degraded": await fleet.stack.degraded()}
    finally:
        os.kill(pid, signal.SIGCONT)


async def _sick(fleet: Processes) -> dict[str, int]:
    """One vendor fails nine of ten calls for 40 s, the other three of ten for a minute."""
    before = {vendor: gate(fleet, vendor)[0] for vendor in BOTH}
    await asyncio.gather(_fails(fleet, FAILING, 0.9, FAILS), _fails(fleet, STUMBLING, 0.3, STUMBLES))
    return {f"moves, {vendor}": gate(fleet, vendor)[0] - before[vendor] for vendor in BOTH}


async def _fails(fleet: Processes, vendor: str, ratio: float, seconds: float) -> None:
    """Returns when the vendor is well again and its breaker closed."""

    async def closed() -> bool:
        return gate(fleet, vendor)[1] == 0

    await fleet.told(vendor, "/faults", fail_ratio=ratio)
    try:
        await asyncio.sleep(seconds)
    finally:
        await fleet.told(vendor, "/faults", fail_ratio=0.0)
    await probe.wait_until(closed, timeout=2 * seconds)
