"""The same fleet as ten processes: the shipped stack, a Valkey and a vendor that judges, on loopback.

Calls come over HTTP, go through the application that `protect` stands around, and leave through the
vendor's client. The vendor is a process of its own, which knows no policy; it lets every call travel for
a random part of the jitter before it counts it. Half of the demand reaches the first pod.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from typing import Any

import httpx2

from bench.claims import Claim, Control, Figure
from bench.contract.cells import PODS, Cell
from bench.contract.fleet import TENANTS, Outcome, drive, quantiles
from bench.core.server import Server
from bench.stage import ROOT, Missing, Stack, Stage, client, headworks, running, stop
from headworks.current import current
from headworks.limits import paced
from headworks.local import probe
from headworks.local.parts import LOOPBACK

POLICY = ROOT / "bench" / "pod" / "contract.toml"
JITTER = 0.05
"""Seconds that a call may travel, at most; the pods' policy reckons with twice as much, since they may
be late themselves."""
LATENCY = "uniform:200ms:1s"
TRIES = 3
"""How often the fleet without J is given the chance to break the contract."""
SEEDS = random.Random()
USED, TRIPS = 0.97, 3.0
"""Of the bound, what must be used: of 250 calls one is 0.4 %, and what a busy machine wakes too late
for is given back. Trips to the store for each call served, settling included."""

SLIDING = Cell("sliding 10 s", "sliding", 10.0, JITTER)
BUCKET = Cell("bucket 1 s", "bucket", 1.0, JITTER)
VENDORS = {"sliding": SLIDING, "eager": SLIDING, "bucket": BUCKET}
"""The policy's vendors, and what judges them: two of them are paced differently against the same one."""


class Crowd:
    """Who sends: through pods at a vendor, or past the limiter in the same pods.

    aborting  the part of the callers that leave within a second or so
    """

    def __init__(
        self, vendor: str, clients: list[httpx2.AsyncClient], *, unlimited: bool = False
    ) -> None:
        self.cell, self.aborting = VENDORS[vendor], 0.0
        self._clients = clients
        self._path = f"/send/{vendor}" + ("?unlimited=true" if unlimited else "")

    async def send(self, pod: int, tokens: int) -> int:
        """One call; its status, 0 where nobody answered."""
        said = {"role": "user", "content": "hi"}
        body = {"model": "m", "messages": [said], "max_tokens": tokens, "stream": self.aborting > 0}
        try:
            key = {"x-api-key": current().tenant}
            return (await self._clients[pod].post(self._path, json=body, headers=key)).status_code
        except httpx2.TransportError:
            return 0


class Processes:
    """The stack, the vendors beside it, and a way to each pod."""

    def __init__(self, stack: Stack, judges: dict[str, int], clients: list[httpx2.AsyncClient]) -> None:
        self.stack, self.clients, self._judges = stack, clients, judges
        self.store = Server(httpx2.URL(stack.part("valkey").url).port or 0)

    def crowd(self, vendor: str, *, unlimited: bool = False) -> Crowd:
        return Crowd(vendor, self.clients, unlimited=unlimited)

    def judge(self, vendor: str) -> int:
        """The port of the one who judges that vendor's calls."""
        return self._judges[VENDORS[vendor].name]

    async def told(self, vendor: str, path: str = "/stats", **change: Any) -> dict[str, Any]:
        """What the judge says; or what it answers to a change."""
        url = f"http://{LOOPBACK}:{self.judge(vendor)}{path}"
        async with client() as asking:
            answer = await (asking.post(url, json=change) if change else asking.get(url))
            found: dict[str, Any] = answer.json()
            return found

    def trips(self) -> int:
        """Scripts that Valkey has run so far, but for the beats by which pods count one another."""
        told: dict[str, Any] = self.store.client.info("commandstats")  # type: ignore[assignment]
        calls = {
            name: told.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "zcard")
        }
        return int(calls["evalsha"] - calls["zcard"])

    async def looks(self) -> list[dict[str, Any]]:
        """What every pod holds, and what it heard since it was last asked."""
        return [(await one.get("/look")).json() for one in self.clients]


@asynccontextmanager
async def processes() -> AsyncIterator[Processes]:
    """Ten pods, ended with the context."""
    async with AsyncExitStack() as raised:
        judges = {}
        for cell in (SLIDING, BUCKET):
            judges[cell.name] = await raised.enter_async_context(_judge(cell))
        urls = (f"{name}=http://{LOOPBACK}:{judges[cell.name]}/v1" for name, cell in VENDORS.items())
        options = [part for url in urls for part in ("--vendor-url", url)]
        stack = await raised.enter_async_context(running("--pods", str(PODS), *options, policy=POLICY))
        clients = [await raised.enter_async_context(client(base_url=pod.url)) for pod in stack.pods()]
        yield Processes(stack, judges, clients)


@asynccontextmanager
async def _judge(cell: Cell) -> AsyncIterator[int]:
    """A vendor that counts as the cell says; its port."""
    port = probe.free_ports(LOOPBACK, 1, SEEDS)[0]
    counts = ("--mechanism", cell.mechanism, "--limit", f"{cell.per_minute}/min")
    if cell.mechanism == "bucket":
        counts += ("--burst", str(round(cell.per_minute * cell.window / 60)))
    else:
        counts += ("--window", f"{cell.window:g}s")
    travel = ("--arrival-jitter", f"0ms:{cell.jitter * 1000:g}ms", "--latency", LATENCY)
    process = await headworks("fake-vendor", "--port", str(port), *counts, *travel)
    try:
        if not await probe.wait_until(lambda: _answers(port), timeout=20.0):
            raise Missing("the vendor did not start")
        yield port
    finally:
        await stop(process)


async def _answers(port: int) -> bool:
    return await probe.http_status(LOOPBACK, port, "/stats") == 200


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
    utilisation = (after["accepted"] - before["accepted"]) / (cell.calls * took)
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


def _sum(looks: list[dict[str, Any]], name: str) -> int:
    return sum(look[name] for look in looks)


async def kept(stage: Stage) -> Claim:
    """The fleet in processes, beside the same pods without the limiter and without J."""
    return judged(await cells(quick=True, seed=stage.seed))


def judged(found: Mapping[str, dict[str, Any]]) -> Claim:
    """What the cells show. It is void where a control saw no rejection."""
    off, eager = (found[f"processes, {name}"]["rejected"] for name in ("off", "without J"))
    sliding, bucket = (found[f"processes, {cell.name}"] for cell in (SLIDING, BUCKET))
    figures = [
        Figure(f"{name}: calls rejected", cell["rejected"], "==", 0, Control(about, rejected))
        for name, cell, about, rejected in (
            (SLIDING.name, sliding, "limiter off", off),
            (SLIDING.name, sliding, "paced at L/W, without J", eager),
            (BUCKET.name, bucket, "limiter off", off),
        )
    ]
    for name, cell in ((SLIDING.name, sliding), (BUCKET.name, bucket)):
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


async def cells(*, quick: bool, seed: int) -> dict[str, dict[str, Any]]:
    """Ours against two mechanisms, and the same pods without the limiter and without J."""
    seconds = 25.0 if quick else 60.0
    async with processes() as fleet:
        found = {
            f"processes, {VENDORS[vendor].name}": await outcome(
                fleet, vendor, warm=12.0, seconds=seconds, seed=seed
            )
            for vendor in ("sliding", "bucket")
        }
        for again in range(TRIES):  # the first rejection pauses the fleet: there are never many
            eager = await outcome(fleet, "eager", warm=5.0, seconds=seconds, seed=seed + again)
            found["processes, without J"] = eager
            if eager["rejected"]:
                break
        found["processes, off"] = await outcome(
            fleet, "sliding", warm=0.0, seconds=8.0, seed=seed, unlimited=True
        )
    return found
