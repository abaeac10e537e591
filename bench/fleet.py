"""The fleet in virtual time: ten pods, one quota, and a vendor that enforces exactly.

Every cell is one run: pods share one store, half of the demand reaches the first of them, and calls
take a random part of the jitter to arrive. Figures are taken from the vendor's own count between the
first and the last of its windows. The three controls are the same run with the limiter left out, with
the jitter left out of the pace, and with the quota divided by the pods.

    python -m bench.fleet [--quick] [--seed N]      prints the cells as JSON
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import httpx2

from headworks.cleanup import Reaper
from headworks.current import Current, enter
from headworks.limits import paced
from headworks.policy.profiles import Profile, profile_named
from headworks.policy.vendor_settings import VendorSettings
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Question, Report, Standing
from headworks.telemetry import Telemetry
from headworks.testing import loop
from headworks.testing.fake_vendor import Delay, FakeVendor, Faults, InProcess, limit
from headworks.vendor import Vendor
from headworks.verdict import Verdict

PODS = 10
PER_MINUTE = 500
"""Requests a minute: what the shipped policy's language model allows."""
TOKENS = 1000
"""Tokens of a call on average, where calls are lumpy: from 100 to 1900."""

FLOOR = 0.05
"""Seconds of jitter that a policy assumes at least, by default."""

Limiter = Literal["shared", "divided", "off"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One run.

    jitter    seconds that a call may take to arrive, at most
    assumed   the jitter that the policy names, None: the true one, and at least `FLOOR`
    window    seconds over which the vendor counts
    overload  demand, as a multiple of the quota
    lumpy     the quota counts tokens, and calls differ
    limiter   `shared`: one store for all pods; `divided`: a store and a tenth of the quota each;
              `off`: no limiter at all
    """

    name: str
    mechanism: Literal["bucket", "sliding", "fixed"]
    jitter: float = 0.05
    assumed: float | None = None
    window: float = 60.0
    overload: float = 5.0
    lumpy: bool = False
    limiter: Limiter = "shared"

    @property
    def allowed_for(self) -> float:
        """Seconds of jitter that the pods reckon with."""
        return max(self.jitter, FLOOR) if self.assumed is None else self.assumed


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one cell showed.

    rejected      calls the vendor answered 429, from the first second to the last
    utilisation   units accepted / what the rate allows in that time
    bound         the utilisation that the assumed jitter leaves possible, W / (W + J) against a window
    of_bound      utilisation / bound
    trips         questions and reports to the store, per call served
    share         of the calls served, the part of the pod that has half of the demand
    shapes        the limiters that kept the quota: Bucket, Window
    """

    rejected: int
    utilisation: float
    bound: float
    of_bound: float
    trips: float
    share: float
    shapes: list[str]


class Counting(MemoryStore):
    """The in-process store, counting what pods ask and tell it."""

    def __init__(self) -> None:
        super().__init__()
        self.trips = 0
        self.shapes: set[str] = set()

    async def ask(self, question: Question) -> Verdict:
        self.trips += 1
        self.shapes.update(type(ask.shape).__name__ for ask in question.asks)
        return await super().ask(question)

    async def report(self, report: Report) -> Standing:
        self.trips += 1
        return await super().report(report)


Send = Callable[[int, dict[str, Any]], Awaitable[httpx2.Response]]


@dataclass
class Fleet:
    """The pods of one cell, in front of one vendor."""

    cell: Cell
    seed: int
    stores: list[Counting] = field(default_factory=list)
    pods: list[Vendor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.vendor = FakeVendor(
            [limit(self._quota(), mechanism=self.cell.mechanism, **self._enforced())],
            faults=Faults(Delay.parse("uniform:200ms:1s"), Delay("uniform", 0.0, self.cell.jitter)),
            rng=random.Random(self.seed),
        )
        self.plain = httpx2.AsyncClient(transport=InProcess(self.vendor), base_url="http://vendor/v1")
        if self.cell.limiter == "off":
            return
        self.stores = [Counting() for _ in range(PODS if self.cell.limiter == "divided" else 1)]
        self.pods = [self._pod(number) for number in range(PODS)]

    def _quota(self) -> str:
        return f"{PER_MINUTE * TOKENS} tokens/min" if self.cell.lumpy else f"{PER_MINUTE}/min"

    def _enforced(self) -> dict[str, Any]:
        """How the judge counts, where it differs from the quota as it is written."""
        if self.cell.mechanism == "bucket":
            return {"burst": self._profile().capacity_of(self._settings().quota[0])}
        return {"window": self.cell.window}

    def _profile(self) -> Profile:
        """The vendor as it is, known to the pods."""
        known = profile_named("openai")
        if self.cell.mechanism == "bucket":
            return known
        return replace(known, mechanism=self.cell.mechanism, window=self.cell.window, burst=None)

    def _settings(self) -> VendorSettings:
        cell = self.cell
        return VendorSettings.model_validate(
            {
                "profile": "openai",
                "base_url": "http://vendor/v1",
                "quota": [self._quota()],
                "share": 1 / PODS if cell.limiter == "divided" else 1.0,
                "attempts": 1,
                "queue_timeout": "5s",
                "expected_latency": "1s",
                "jitter": f"{cell.allowed_for}s",
            }
        )

    def _pod(self, number: int) -> Vendor:
        return Vendor(
            "llm",
            self._settings(),
            self._profile(),
            store=self.stores[number % len(self.stores)],
            telemetry=Telemetry(),
            reaper=Reaper(),
            pod=f"pod-{number}",
            replicas=1 if self.cell.limiter == "divided" else PODS,
            rng=random.Random(self.seed + number),
            now=lambda: datetime(2026, 1, 1, tzinfo=UTC),
            transport=InProcess(self.vendor),
        )

    async def send(self, pod: int, body: dict[str, Any]) -> httpx2.Response:
        """One call through that pod, or straight to the vendor where there is no limiter."""
        sender = self.pods[pod].client if self.pods else self.plain
        return await sender.post("/chat/completions", json=body)

    async def accepted(self) -> int:
        """Units the vendor has accepted so far."""
        stats = (await self.plain.get("http://vendor/stats")).json()
        (used,) = stats["utilisation"].values()
        return int(used["accepted"])


async def drive(fleet: Fleet, seconds: float, seed: int) -> list[int]:
    """Send for so many seconds, half of it to the first pod; calls served, by pod."""
    served = [0] * PODS
    rng = random.Random(seed)
    clock = asyncio.get_running_loop()
    ends = clock.time() + seconds

    async def one(pod: int, tenant: str, tokens: int) -> None:
        enter(Current(tenant=tenant))
        messages = [{"role": "user", "content": "hi"}]
        body = {"model": "m", "messages": messages, "max_tokens": tokens}
        answer = await fleet.send(pod, body)
        served[pod] += answer.status_code == 200

    async with asyncio.TaskGroup() as group:
        while clock.time() < ends:
            pod = 0 if rng.random() < 0.5 else rng.randrange(1, PODS)
            tokens = rng.randint(100, 2 * TOKENS - 100)
            group.create_task(one(pod, f"t{rng.randrange(20)}", tokens))
            await asyncio.sleep(rng.expovariate(fleet.cell.overload * PER_MINUTE / 60))
    return served


async def _run(cell: Cell, seed: int) -> Outcome:
    fleet = Fleet(cell, seed)
    warm, measured = 60.0, 60.0
    driving = asyncio.ensure_future(drive(fleet, warm + measured + 5, seed))
    await asyncio.sleep(warm)
    before = await fleet.accepted()
    await asyncio.sleep(measured)
    units = await fleet.accepted() - before
    served = await driving
    rejected = sum(fleet.vendor.ledger.rejected.values())
    utilisation = units / (PER_MINUTE * (TOKENS if cell.lumpy else 1) * measured / 60)
    bound = paced.utilisation(cell.window, cell.allowed_for, cell.mechanism)
    return Outcome(
        rejected=rejected,
        utilisation=round(utilisation, 4),
        bound=round(bound, 4),
        of_bound=round(utilisation / bound, 4),
        trips=round(sum(store.trips for store in fleet.stores) / max(1, sum(served)), 3),
        share=round(served[0] / max(1, sum(served)), 4),
        shapes=sorted(set().union(*(store.shapes for store in fleet.stores))),
    )


def run(cell: Cell, seed: int) -> Outcome:
    """Run one cell in virtual time; the same seed gives the same outcome."""
    return loop.run(_run(cell, seed))


def cells(*, quick: bool) -> list[Cell]:
    """Every cell of a proof: mechanisms × jitters, lumpy costs, uneven demand, and the controls."""
    jitters = (0.05,) if quick else (0.0, 0.05, 0.25)
    found = [
        Cell(f"{mechanism} {jitter * 1000:g} ms", mechanism, jitter)
        for mechanism in ("bucket", "sliding", "fixed")
        for jitter in jitters
    ]
    return [
        *found,
        Cell("tokens", "sliding", lumpy=True),
        Cell("narrow", "sliding", 0.25, window=10.0),
        Cell("uneven", "bucket", overload=1.2),
        *(Cell(f"{shape} off", shape, limiter="off") for shape in ("bucket", "sliding", "fixed")),
        Cell("tokens off", "sliding", lumpy=True, limiter="off"),
        Cell("narrow without jitter", "sliding", 0.25, assumed=0.0, window=10.0),
        Cell("uneven divided", "bucket", overload=1.2, limiter="divided"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    options = parser.parse_args()
    outcomes = {}
    for cell in cells(quick=options.quick):
        if options.only in cell.name:
            outcome = outcomes[cell.name] = asdict(run(cell, options.seed))
            sys.stderr.write(f"{cell.name}: {outcome}\n")
    sys.stdout.write(json.dumps(outcomes, indent=2) + "\n")


if __name__ == "__main__":
    main()
