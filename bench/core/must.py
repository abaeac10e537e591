"""What has to be reached, line by line: claim, ours, bound, verdict. Figures in, verdicts out."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.core import alone, exact, shared
from bench.core.book import Book
from bench.core.contestants import OURS, PEERS
from bench.core.contestants.floors import OUR_SCRIPT

COMPARE: dict[str, Callable[[float, float], bool]] = {
    "==": operator.eq,
    "<=": operator.le,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Line:
    """One bound and what was found; `beside` says against whom, or what the peers have.

    A figure that was not taken (None) has not reached its bound.
    """

    claim: str
    ours: float | None
    sign: str
    bound: float
    beside: str = ""

    @property
    def reached(self) -> bool:
        return self.ours is not None and COMPARE[self.sign](self.ours, self.bound)


@dataclass(frozen=True, slots=True)
class Bounds:
    """One shape's bounds: times the best peer's decisions per second, and bytes per key."""

    one: float
    two: float
    memory: float
    bytes_memory: float
    bytes_store: float


BOUNDS = {
    "bucket": Bounds(one=4.0, two=6.0, memory=2.0, bytes_memory=200, bytes_store=110),
    "window": Bounds(one=3.5, two=5.0, memory=1.0, bytes_memory=450, bytes_store=300),
}
ALONE = 1.25
TRIPS = 0.05


def lines(book: Book, kept_in_memory: tuple[int, ...]) -> list[Line]:
    """Every line, for both shapes. kept_in_memory: after how many hits the bytes were taken."""
    found: list[Line] = []
    for contestant in OURS:
        name, bounds = contestant.name, BOUNDS[contestant.shape]
        found += _speed(book, name, bounds)
        found += _store(book, name)
        found += _bytes(book, name, bounds, kept_in_memory)
        found += _exact(book, name, contestant.shape)
        found.append(Line(f"{name}: refused while timed", _refused(book, name), "==", 0))
    return found


def _speed(book: Book, name: str, bounds: Bounds) -> Iterator[Line]:
    for case, bound in (
        (shared.case(128, two=False), bounds.one),
        (shared.case(128, two=True), bounds.two),
        (alone.HOT, bounds.memory),
        (alone.MANY, bounds.memory),
    ):
        peer = book.best(case, (peer.name for peer in PEERS), "rate")
        times = book.ratio(case, name, peer, "rate") if peer else None
        yield Line(f"{name}: {case}, decisions/s × best peer", times, ">=", bound, peer or "")


def _store(book: Book, name: str) -> Iterator[Line]:
    single, many = shared.case(1, two=False), shared.case(128, two=False)
    slower = book.ratio(shared.IN_TURN, name, OUR_SCRIPT.name, "p50_us")
    yield Line(f"{name}: {shared.IN_TURN}, p50 × {OUR_SCRIPT.name}", slower, "<=", ALONE)
    yield Line(f"{name}: {single}, round trips", book.worst(single, name, "trips"), "==", 1)
    yield Line(f"{name}: {many}, round trips", book.median(many, name, "trips"), "<=", TRIPS)


def _bytes(book: Book, name: str, bounds: Bounds, kept: tuple[int, ...]) -> Iterator[Line]:
    memory = tuple(alone.kept_case(hits) for hits in kept)
    store = tuple(shared.kept_case(hits) for hits in shared.HITS)
    for what, cases, bound in (
        ("memory", memory, bounds.bytes_memory),
        ("MEMORY USAGE", store, bounds.bytes_store),
    ):
        taken = [book.median(case, name, "bytes") for case in cases]
        known = [value for value in taken if value is not None]
        most = max(known) if len(known) == len(cases) else None
        peers = [value for c in cases for p in PEERS if (value := book.median(c, p.name, "bytes"))]
        beside = f"peers {min(peers):,.0f} to {max(peers):,.0f}" if peers else ""
        yield Line(f"{name}: {what}, most bytes per key", most, "<=", bound, beside)


def _exact(book: Book, name: str, shape: str) -> Iterator[Line]:
    cases = (exact.BOUNDARY, exact.FLOOD, exact.RACE) if shape == "window" else (exact.RACE,)
    for case in cases:
        peers = [value for p in PEERS if (value := book.worst(case, p.name, "most"))]
        beside = f"peers {min(peers):.0f} to {max(peers):.0f}" if peers else ""
        most, fewest = book.worst(case, name, "most"), book.least(case, name, "most")
        for which, admitted in (("most", most), ("fewest", fewest)):
            yield Line(f"{name}: {case}, {which} let in", admitted, "==", exact.LIMIT, beside)


def _refused(book: Book, name: str) -> float | None:
    found = [book.worst(case, name, "refused") for case in book.cases()]
    return max((value for value in found if value is not None), default=None)
