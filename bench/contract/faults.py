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

from bench.contract.left import alive, counted, gate
from bench.contract.processes import Processes, processes
from bench.rolling import restart
from bench.stage import ROOT, Missing, stop
from headworks.local import probe
from headworks.local.parts import LOOPBACK

FAILING, STUMBLING = "sliding", "bucket"
"""The vendor that fails nine of ten calls, and the one that fails three meanwhile."""
BOTH = (FAILING, STUMBLING)
FAILS, STUMBLES = 40.0, 60.0
"""Seconds for which they do. The breaker stays open for as long as the first fails, so that no probe can
meet a failure, and to open once is what it must do."""
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
    """Two pods die at once; what the store counts of them is looked at before it can run out."""
    before = alive(fleet)
    dead = {fleet.stack.part(name).pid or 0 for name in KILLED}
    restarting = [asyncio.ensure_future(restart(fleet.stack, name, signal.SIGKILL)) for name in KILLED]
    await asyncio.sleep(0)  # both have been sent their signal
    still_counted = len(counted(fleet) & dead)
    await asyncio.gather(*restarting)
    return {"dead": still_counted, "replaced": len(before - alive(fleet))}


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
    probes, _ = await asyncio.gather(
        _fails(fleet, FAILING, 0.9, FAILS), _fails(fleet, STUMBLING, 0.3, STUMBLES)
    )
    return {f"moves, {v}": gate(fleet, v)[0] - before[v] for v in BOTH} | {"probes": probes}


async def _fails(fleet: Processes, vendor: str, ratio: float, seconds: float) -> int:
    """Returns when the vendor is well again and its breaker closed; the probes under way, at most."""
    most = 0

    async def closed() -> bool:
        nonlocal most
        _, open_until, probes = gate(fleet, vendor)
        most = max(most, probes)
        return open_until == 0

    await fleet.told(vendor, "/faults", fail_ratio=ratio)
    try:
        await asyncio.sleep(seconds)
    finally:
        await fleet.told(vendor, "/faults", fail_ratio=0.0)
    await probe.wait_until(closed, timeout=2 * seconds)
    return most
