"""The fleet in virtual time: ten pods, one quota, and a vendor that enforces exactly.

Half of the demand reaches the first pod; calls take a random part of the jitter to arrive. Figures are
taken from the vendor's own count, after a first minute. The limiter is ours, another's, or none.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import httpx2

from bench.contract.cells import LEAST, MOST, PODS, Cell
from bench.contract.peers import MAKE, Peer, clocks
from headworks.cleanup import Reaper
from headworks.clock import OneLoop
from headworks.current import Current, enter
from headworks.limits import paced
from headworks.policy.profiles import Profile, profile_named
from headworks.policy.vendor_settings import VendorSettings
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Question, Report, Standing, Store
from headworks.telemetry import Event, Sink, Telemetry, Waited
from headworks.testing import loop
from headworks.testing.fake_vendor import Delay, FakeVendor, Faults, InProcess, limit
from headworks.vendor import Vendor
from headworks.verdict import Verdict

TENANTS = 20
TIMEOUT = 5.0
"""Seconds that a caller waits to be sent, at most."""
WARM = 60.0
TRIPS = (0.0002, 0.001)
"""Seconds that a trip to the store takes, at least and at most."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one cell showed.

    rejected      calls the vendor answered 429, from the first second to the last
    utilisation   units accepted / what the rate allows in that time
    bound         the utilisation that the injected jitter leaves possible: W / (W + J) against a window
    of_bound      utilisation / bound
    trips         questions and reports to the store, per call served
    served        calls, over all of the time
    waited        seconds from asking to sending, of those sent after the first minute: p50, p90, p99
    refused       seconds until the others were told: p50, p99
    kept          the part of them that was told only after 50 ms
    jain_pods     Jain's index of served / demanded, over pods
    jain_tenants  the same over tenants
    share         of the calls served, the part of the pod that has half of the demand
    shapes        the limiters that kept the quota: Bucket, Window
    """

    rejected: int
    utilisation: float
    bound: float
    of_bound: float
    trips: float
    served: int
    waited: list[float]
    refused: list[float]
    kept: float
    jain_pods: float
    jain_tenants: float
    share: float
    shapes: list[str]


class Counting(MemoryStore):
    """The in-process store at the end of a wire, counting what pods ask and tell it."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng
        self.trips = 0
        self.shapes: set[str] = set()

    async def ask(self, question: Question) -> Verdict:
        self.trips += 1
        self.shapes.update(type(ask.shape).__name__ for ask in question.asks)
        await asyncio.sleep(self._rng.uniform(*TRIPS) / 2)
        verdict = await super().ask(question)
        await asyncio.sleep(self._rng.uniform(*TRIPS) / 2)
        return verdict

    async def report(self, report: Report) -> Standing:
        self.trips += 1
        await asyncio.sleep(self._rng.uniform(*TRIPS))
        return await super().report(report)


class Waits:
    """How long calls stood in a line of ours."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def record(self, event: Event) -> None:
        if isinstance(event, Waited):
            self.seconds.append(event.seconds)


@dataclass
class Fleet:
    """The pods of one cell, in front of one vendor."""

    cell: Cell
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    stores: list[Counting] = field(default_factory=list)
    pods: list[Vendor] = field(default_factory=list)
    reapers: list[Reaper] = field(default_factory=list)
    waits: Waits = field(default_factory=Waits)
    peer: Peer | None = None
    sinks: list[Sink] = field(default_factory=list)
    aborting: float = 0.0
    """The part of the callers that leave within a second or so."""

    def __post_init__(self) -> None:
        self.vendor = FakeVendor(
            [limit(self._quota(), mechanism=self.cell.mechanism, **self._enforced())],
            faults=Faults(Delay.parse("uniform:200ms:1s"), Delay("uniform", 0.0, self.cell.jitter)),
            rng=random.Random(self.seed),
        )
        self.plain = httpx2.AsyncClient(transport=InProcess(self.vendor), base_url="http://vendor/v1")
        if self.cell.limiter in MAKE:
            self.peer = Peer(self.cell.limiter, *self._allowed(), TIMEOUT)
        elif self.cell.limiter != "off":
            number = PODS if self.cell.limiter == "divided" else 1
            self.stores = [Counting(random.Random(self.seed)) for _ in range(number)]
            self.pods = [self.pod(number, self.way(number)) for number in range(PODS)]

    def way(self, number: int) -> Store:
        """A pod's way to its store."""
        return self.stores[number % len(self.stores)]

    def _quota(self) -> str:
        cell = self.cell
        return f"{cell.tokens} tokens/min" if cell.tokens else f"{cell.per_minute}/min"

    def _allowed(self) -> tuple[int, float]:
        """The quota as another limiter is told it: as the vendor counts."""
        window = self.cell.window
        return round(self.cell.per_minute * window / 60), window

    def _enforced(self) -> dict[str, Any]:
        """How the judge counts, where it differs from the quota as it is written."""
        if self.cell.mechanism == "bucket":
            return {"burst": self._profile().capacity_of(self._policy().quota[0])}
        return {"window": self.cell.window}

    def _profile(self) -> Profile:
        """The vendor as it is, known to the pods."""
        known, cell = profile_named("openai"), self.cell
        if cell.mechanism == "bucket":
            return replace(known, burst=cell.window)
        return replace(known, mechanism=cell.mechanism, window=cell.window, burst=None)

    def _policy(self) -> VendorSettings:
        cell = self.cell
        return VendorSettings.model_validate(
            {
                "profile": "openai",
                "base_url": "http://vendor/v1",
                "quota": [self._quota()],
                "share": 1 / PODS if cell.limiter == "divided" else 1.0,
                "attempts": 1,
                "queue_timeout": f"{TIMEOUT}s",
                "expected_latency": "1s",
                "jitter": f"{cell.allowed_for}s",
            }
            | self.settings
        )

    def pod(self, number: int, store: Store) -> Vendor:
        """A pod of that number on that store."""
        self.reapers.append(Reaper())
        return Vendor(
            "llm",
            self._policy(),
            self._profile(),
            store=store,
            telemetry=Telemetry(self.waits, *self.sinks),
            reaper=self.reapers[-1],
            home=OneLoop(),
            pod=f"pod-{number}",
            replicas=1 if self.cell.limiter == "divided" else PODS,
            rng=random.Random(self.seed + number),
            now=lambda: datetime(2026, 1, 1, tzinfo=UTC),
            transport=InProcess(self.vendor),
        )

    async def send(self, pod: int, tokens: int) -> int:
        """One call through that pod, or straight to the vendor where there is no limiter; its status."""
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens}
        body["stream"] = self.aborting > 0
        sender = self.plain
        if self.pods:
            sender = self.pods[pod].client
        elif self.peer is not None:
            clock = asyncio.get_running_loop()
            began = clock.time()
            if not await self.peer.acquire(pod, 1):
                return 503
            self.waits.seconds.append(clock.time() - began)
        return (await sender.post("/chat/completions", json=body)).status_code

    @property
    def trips(self) -> int:
        """To the store, so far."""
        return sum(store.trips for store in self.stores) + (self.peer.trips if self.peer else 0)

    async def accepted(self) -> int:
        """Units the vendor has accepted so far."""
        stats = (await self.plain.get("http://vendor/stats")).json()
        (used,) = stats["utilisation"].values()
        return int(used["accepted"])


@dataclass
class Driven:
    """What was asked for and served, by pod and by tenant, and how long the refused were kept."""

    asked: Counter[object] = field(default_factory=Counter)
    served: Counter[object] = field(default_factory=Counter)
    refused: list[float] = field(default_factory=list)

    def jain(self, names: Sequence[object]) -> float:
        """Jain's index of served / asked over these: 1 when all get the same part of their demand."""
        parts = [self.served[name] / max(1, self.asked[name]) for name in names]
        squares = sum(part * part for part in parts)
        return sum(parts) ** 2 / (len(parts) * squares) if squares else 0.0


class Driveable(Protocol):
    """Pods that calls are sent through: here, or in processes of their own."""

    cell: Cell
    aborting: float

    async def send(self, pod: int, tokens: int) -> int: ...


async def drive(fleet: Driveable, seconds: float, seed: int) -> Driven:
    """Send for so many seconds, half of it to the first pod."""
    driven = Driven()
    rng = random.Random(seed)
    clock = asyncio.get_running_loop()
    ends = clock.time() + seconds

    async def one(pod: int, tenant: str, tokens: int) -> None:
        enter(Current(tenant=tenant))
        began = clock.time()
        driven.asked.update((pod, tenant))
        patience = rng.uniform(0.0, 1.5) if rng.random() < fleet.aborting else None
        try:
            async with asyncio.timeout(patience):
                status = await fleet.send(pod, tokens)
        except TimeoutError:
            return
        if status == 200:
            driven.served.update((pod, tenant))
        else:
            driven.refused.append(clock.time() - began)

    async with asyncio.TaskGroup() as group:
        while clock.time() < ends:
            pod = 0 if rng.random() < 0.5 else rng.randrange(1, PODS)
            tenant = f"t{rng.randrange(TENANTS)}"
            group.create_task(one(pod, tenant, rng.randint(LEAST, MOST)))
            await asyncio.sleep(rng.expovariate(fleet.cell.overload * fleet.cell.calls))
    return driven


async def _run(cell: Cell, seed: int) -> Outcome:
    fleet = Fleet(cell, seed)
    driving = asyncio.ensure_future(drive(fleet, WARM + cell.seconds + 5, seed))
    await asyncio.sleep(WARM)
    before, first = await fleet.accepted(), len(fleet.waits.seconds)
    await asyncio.sleep(cell.seconds)
    units = await fleet.accepted() - before
    driven = await driving
    utilisation = units / ((cell.tokens or cell.per_minute) * cell.seconds / 60)
    bound = paced.utilisation(cell.window, cell.jitter, cell.mechanism)
    served = sum(driven.served[pod] for pod in range(PODS))
    return Outcome(
        rejected=sum(fleet.vendor.ledger.rejected.values()),
        utilisation=round(utilisation, 4),
        bound=round(bound, 4),
        of_bound=round(utilisation / bound, 4),
        trips=round(fleet.trips / max(1, served), 3),
        served=served,
        waited=quantiles(fleet.waits.seconds[first:], 0.5, 0.9, 0.99),
        refused=quantiles(driven.refused, 0.5, 0.99),
        kept=round(sum(s > 0.05 for s in driven.refused) / max(1, len(driven.refused)), 4),
        jain_pods=round(driven.jain(range(PODS)), 4),
        jain_tenants=round(driven.jain([f"t{number}" for number in range(TENANTS)]), 4),
        share=round(driven.served[0] / max(1, served), 4),
        shapes=sorted(set().union(*(store.shapes for store in fleet.stores))),
    )


def quantiles(seconds: Sequence[float], *wanted: float) -> list[float]:
    """These quantiles, in order; none of nothing."""
    ordered = sorted(seconds)
    return [round(ordered[int(part * (len(ordered) - 1))], 3) for part in wanted] if ordered else []


def run(cell: Cell, seed: int) -> Outcome:
    """Run one cell in virtual time; the same seed gives the same outcome."""
    if cell.limiter not in MAKE:
        return loop.run(_run(cell, seed))
    with clocks():
        return loop.run(_run(cell, seed))
