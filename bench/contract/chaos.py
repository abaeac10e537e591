"""The same fleet, with something going wrong in the middle; what is lost afterwards is counted.

    python -m bench.contract.chaos [--seed N] [--only NAME]      prints JSON

A first minute, the fault, a minute after it, at five times the quota all the while. Then demand ends,
and after a while everything must be as at the start.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from bench.contract.cells import PODS, Cell
from bench.contract.fleet import Counting, Driven, Fleet, drive
from headworks.cleanup import Reaper
from headworks.limits import paced
from headworks.store.ladder import LadderStore
from headworks.store.protocol import Census, Question, Report, Standing, Store, StoreDown
from headworks.telemetry import Changed, Event
from headworks.testing import loop
from headworks.vendor import Vendor
from headworks.verdict import Verdict

WINDOW = 10.0
AFTER = 60.0
"""Seconds that are looked at after the last fault."""

CELL = Cell("chaos", "sliding", WINDOW, 0.05)


@dataclass(frozen=True, slots=True)
class Aftermath:
    """What one scene showed.

    rejected   calls the vendor answered 429
    recovered  seconds after the last fault until a window was used to 99 % of its bound
    used       of the bound, from a window after the last fault to the end
    opened     times the breaker opened, as the fleet saw it; `closed`: that it is closed at the end
    lost       slots, places in line, bookings, calls at the vendor and tasks that are left over
    """

    rejected: int
    recovered: float
    used: float
    opened: int
    closed: bool
    lost: int
    served: int


class Cut(Counting):
    """One pod's way to the store, which can be cut."""

    def __init__(self, store: Counting) -> None:
        super().__init__(random.Random(0))
        self.store, self.down = store, False

    async def ask(self, question: Question) -> Verdict:
        await self._answers()
        return await self.store.ask(question)

    async def report(self, report: Report) -> Standing:
        await self._answers()
        return await self.store.report(report)

    async def census(self, group: str, *, process: str, ttl: float) -> Census:
        await self._answers()
        return await self.store.census(group, process=process, ttl=ttl)

    async def _answers(self) -> None:
        if self.down:
            await asyncio.sleep(0.01)
            raise StoreDown("cut off")


class Shaken(Fleet):
    """A fleet whose pods each have a ladder, and a way to the store that can be cut."""

    def __post_init__(self) -> None:
        self.ways: dict[int, Cut] = {}
        self.ladders: list[LadderStore] = []
        self.moves = Moves()
        self.sinks.append(self.moves)
        super().__post_init__()

    def way(self, number: int) -> Store:
        self.ways[number] = Cut(self.stores[0])
        rng = random.Random(self.seed + number)
        ladder = LadderStore(self.ways[number], replicas=PODS, rng=rng, when_down=self.when_down)
        self.ladders.append(ladder)
        return ladder

    when_down: Literal["share", "closed"] = "closed"

    def replace(self, number: int) -> tuple[Vendor, Reaper]:
        """Start a new pod in the place of one; the old one."""
        old, spent = self.pods[number], self.reapers[number]
        self.pods[number] = self.pod(number, self.way(number))
        self.reapers[number] = self.reapers.pop()
        return old, spent


class Moves:
    """When the breaker changed, as any pod heard it."""

    def __init__(self) -> None:
        self.epochs: set[str] = set()

    def record(self, event: Event) -> None:
        if isinstance(event, Changed) and event.state == "open":
            self.epochs.add(event.detail)


Scene = Callable[[Shaken], Awaitable[None]]


async def killed(fleet: Shaken) -> None:
    """Two pods die: what they had booked and begun is never heard of again."""
    for number in (3, 7):
        fleet.ways[number].down = True  # nothing it says arrives
        old, _ = fleet.replace(number)
        await old.aclose()
        await asyncio.sleep(2)


async def rolled(fleet: Shaken) -> None:
    """Every pod in turn is closed and replaced."""
    for number in range(PODS):
        old, reaper = fleet.replace(number)
        await old.aclose()
        await reaper.drain(5)
        await asyncio.sleep(2)


async def aborted(fleet: Shaken) -> None:
    """A fifth of the callers leave in the middle, for half a minute."""
    fleet.aborting = 0.2
    await asyncio.sleep(30)
    fleet.aborting = 0.0


async def without_store(fleet: Shaken) -> None:
    """Nobody reaches the store for five seconds."""
    await _cut(fleet, range(PODS), 5)


async def emptied(fleet: Shaken, seconds: float = 5) -> None:
    """Nobody reaches the store for five seconds, and it comes back without its memory."""
    fresh = Counting(random.Random(fleet.seed))
    for way in fleet.ways.values():
        way.down = True
    await asyncio.sleep(seconds)
    fleet.stores = [fresh]
    for way in fleet.ways.values():
        way.store, way.down = fresh, False


async def emptied_at_once(fleet: Shaken) -> None:
    """The same so quickly that hardly anybody notices."""
    await emptied(fleet, 0.02)


async def cut_off(fleet: Shaken) -> None:
    """Three of the pods do not reach the store for twenty seconds."""
    await _cut(fleet, (1, 4, 8), 20)


async def _cut(fleet: Shaken, pods: Any, seconds: float) -> None:
    for number in pods:
        fleet.ways[number].down = True
    await asyncio.sleep(seconds)
    for number in pods:
        fleet.ways[number].down = False


async def failing(fleet: Shaken) -> None:
    """Nine of ten calls fail, for 40 s: the breaker opens, and closes again."""
    await _fail(fleet, 0.9, 40)


async def stumbling(fleet: Shaken) -> None:
    """Three of ten calls fail, for a minute: the breaker stays closed."""
    await _fail(fleet, 0.3, 60)


async def _fail(fleet: Shaken, ratio: float, seconds: float) -> None:
    fleet.vendor.faults = replace(fleet.vendor.faults, fail_ratio=ratio)
    await asyncio.sleep(seconds)
    fleet.vendor.faults = replace(fleet.vendor.faults, fail_ratio=0.0)


FAILING = "vendor fails 90 %"
SCENES: dict[str, Scene] = {
    "two pods killed": killed,
    "rolling restart": rolled,
    "a fifth aborted": aborted,
    "store away 5 s": without_store,
    "store back empty": emptied,
    "store empty at once": emptied_at_once,
    "three pods cut off": cut_off,
    FAILING: failing,
    "vendor fails 30 %": stumbling,
}
ALONE: dict[str, Scene] = {
    "store away 5 s, share": without_store,
    "three pods cut off, share": cut_off,
}
"""Controls: pods that go on alone without the store."""


async def _run(name: str, seed: int, cell: Cell) -> Aftermath:
    fleet = Shaken(cell, seed, settings={"breaker": {"open_for": "30s"}})
    if name in ALONE:
        fleet.when_down = "share"
        fleet.ladders.clear()
        fleet.pods = [fleet.pod(number, fleet.way(number)) for number in range(PODS)]
        del fleet.reapers[:PODS]
    clock = asyncio.get_running_loop()
    began = clock.time()
    driving = asyncio.ensure_future(_drive(fleet, seed))
    await asyncio.sleep(60)
    await (SCENES | ALONE)[name](fleet)
    over = clock.time()
    await asyncio.sleep(AFTER)
    driving.cancel()
    await asyncio.wait((driving,))
    seconds = fleet.vendor.ledger.as_json(fleet.vendor.judge, fleet.vendor.now_us())["series"]
    accepted = list(seconds[:-1])  # the last has only begun
    await asyncio.sleep(60)
    lost = fleet.vendor.ledger.in_flight
    for pod in fleet.pods:
        now = pod.statistics()
        lost += now.waiting + now.booked + now.in_flight + (pod._slots.total - now.free)
    shut = max(pod.statistics().shut_for for pod in fleet.pods)
    for pod, reaper in zip(fleet.pods, fleet.reapers, strict=False):
        await pod.aclose()
        await reaper.drain(5)
    for ladder in fleet.ladders:
        await ladder.aclose()
    await asyncio.sleep(1)
    lost += len(asyncio.all_tasks()) - 1
    return Aftermath(
        rejected=sum(fleet.vendor.ledger.rejected.values()),
        recovered=recovered(accepted, over - began, cell),
        used=round(used(accepted[int(over - began + WINDOW) :], cell), 4),
        opened=len(fleet.moves.epochs),
        closed=shut == 0.0,
        lost=lost,
        served=fleet.vendor.ledger.accepted,
    )


async def _drive(fleet: Shaken, seed: int) -> Driven:
    return await drive(fleet, 1e9, seed)


def used(accepted: list[int], cell: Cell) -> float:
    """The part of its bound that these seconds' calls are."""
    bound = cell.calls * paced.utilisation(cell.window, cell.jitter, cell.mechanism)
    return sum(accepted) / len(accepted) / bound if accepted else 0.0


def recovered(accepted: list[int], over: float, cell: Cell, part: float = 0.99) -> float:
    """Seconds from then to the first whole window of which that part is used."""
    width = int(WINDOW)
    for at in range(int(over), len(accepted) - width):
        if used(accepted[at : at + width], cell) >= part:
            return round(at - over, 1) if at > over else 0.0
    return float("inf")


def run(name: str, seed: int, cell: Cell = CELL) -> Aftermath:
    """One scene in virtual time; the same seed gives the same outcome."""
    return loop.run(_run(name, seed, cell))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="scenes whose name contains this")
    options = parser.parse_args()
    outcomes = {}
    for name in (*SCENES, *ALONE):
        if options.only in name:
            outcomes[name] = asdict(run(name, options.seed))
            sys.stderr.write(f"{name}: {outcomes[name]}\n")
    sys.stdout.write(json.dumps(outcomes, indent=2) + "\n")


if __name__ == "__main__":
    main()
