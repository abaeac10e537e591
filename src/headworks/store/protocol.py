"""The store's contract: one question in, one verdict out; one report when it is over.

Two implementations answer verdict for verdict the same: `MemoryStore` (this process) and
`ValkeyStore` (every process). Scripts and arithmetic use integer microseconds on the store's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

from headworks.limits.breaker import BreakerRules, Ending
from headworks.limits.shapes import Shape
from headworks.verdict import Verdict


class StoreDown(Exception):
    """The store did not decide in time or cannot be reached. Never leaves the store's ladder."""


class Ask(NamedTuple):
    """One limit of a question: `cost` units (≥ 0; 0 peeks) of `key`, whose limit has this shape.

    `name` is what the verdict calls the limit; it never reaches the store.
    """

    name: str
    key: str
    shape: Shape
    cost: int = 1


class FinalAsk(Ask):
    """An ask of which nothing is ever given back, by nobody: a refusal holds until its
    `retry_after`, and may be answered from memory until then (`DenyCache`)."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Gate:
    """The breaker and cool-down in front of a question's limits, kept under `key`."""

    key: str
    rules: BreakerRules


class _Question(NamedTuple):
    asks: tuple[Ask, ...]
    horizon: float = 0.0
    gate: Gate | None = None
    pod: str = ""
    demand: float = 0.0


def _repeats(asks: tuple[Ask, ...]) -> bool:
    if len(asks) == 2:  # as most are, and a comparison is quicker than a set
        return asks[0][1] == asks[1][1]
    return len({ask.key for ask in asks}) < len(asks)


class Question(_Question):
    """All that one decision needs: every limit consumes, or none does.

    horizon  seconds ahead that a send time may be booked; 0 asks for now. A booking is placed at the
             earliest moment at which every limit has room, never before an earlier booking that one
             of its limits made wait. A refusal's `retry_after` counts the horizon in.
    gate     refuses before the limits are looked at
    pod      who asks, and
    demand   its own recent demand in units per second; reported when > 0, the verdict then carries
             the whole fleet's. Reports older than 10 s are forgotten.
    """

    __slots__ = ()

    def __new__(
        cls,
        asks: tuple[Ask, ...],
        horizon: float = 0.0,
        gate: Gate | None = None,
        pod: str = "",
        demand: float = 0.0,
    ) -> Self:
        if len(asks) > 1 and _repeats(asks):
            raise ValueError("a question names each key once: two limits on one key would share a state")
        return tuple.__new__(cls, (asks, horizon, gate, pod, demand))


@dataclass(frozen=True, slots=True)
class Correction:
    """A cost that turned out otherwise: `units` > 0 are charged on top, < 0 are given back.

    at_us is `Verdict.at_us` of the booking that paid. What is charged on top voids no booking and
    may pass the limit; later questions wait until it is paid. What is given back returns to the
    sub-bucket it came from, and is forgotten if that is gone; a bucket takes it back as far as it has
    been busy since. `shape` is the one the booking was made under.
    """

    key: str
    shape: Shape
    units: int
    at_us: int


@dataclass(frozen=True, slots=True)
class Report:
    """What is told when a call is over, in one trip.

    ending     how the attempt ended; None reports only corrections
    slow       it took longer than the breaker's slow-call bound
    epoch      `Verdict.epoch` under which it was sent: endings of an older epoch move no breaker
    probe      `Verdict.probe`
    cool_down  seconds for which the whole fleet shall pause; 0 for none
    """

    corrections: tuple[Correction, ...] = ()
    gate: Gate | None = None
    ending: Ending | None = None
    slow: bool = False
    epoch: int = 0
    probe: int = 0
    cool_down: float = 0.0


@dataclass(frozen=True, slots=True)
class Standing:
    """The gate after a report: its epoch, and how many seconds it stays shut (0: it is not)."""

    epoch: int = 0
    shut_for: float = 0.0


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """questions and reports asked · trips to a server · failures of it · decided without it · how many
    processes share it, as far as is known."""

    kind: str
    questions: int = 0
    reports: int = 0
    trips: int = 0
    failures: int = 0
    degraded: int = 0
    up: bool = True
    processes: int = 1


Hears = Callable[[Verdict], object]
"""Who is told a verdict. Must not raise."""
Learns = Callable[[Sequence[Ask], float, Verdict], object]
"""Who learns from it: what was asked, when (on the loop's clock), and the verdict."""


class Store(Protocol):
    """Shared state, asked in whole questions. Every method may be cancelled at any await."""

    async def ask(self, question: Question) -> Verdict:
        """Decide one question. A cancelled ask may have consumed; it is paid like any other."""
        ...

    def put(self, question: Question, to: Hears, first: Learns | None = None) -> bool:
        """`ask` for one who is no task: `to` hears the verdict, once, in a later turn of the loop, after
        `first`, where there is one.

        Only for questions without gate, horizon and demand. False where this store, or this moment, is
        for tasks only: nothing has been asked then, and nobody hears anything.
        """
        ...

    async def report(self, report: Report) -> Standing:
        """Settle costs, tell the breaker how a call ended, start a cool-down."""
        ...

    async def lease(self, key: str, *, holder: str, limit: int, ttl: float) -> int:
        """Hold one of `limit` places under `key` for `ttl` seconds; asking again renews it.

        Returns the lease's fence, 0 when every place is held by others. It stays the same while the
        lease is renewed in time, and whoever holds a place later has a greater one: what a holder
        writes elsewhere can carry it, so that a late one is told from its successor.
        """
        ...

    async def release(self, key: str, *, holder: str) -> None:
        """Return a lease; returning one not held does nothing."""
        ...

    async def forget(self, keys: Sequence[str]) -> None:
        """Forget the state under these keys, as if nothing had ever been taken."""
        ...

    async def aclose(self) -> None: ...

    def statistics(self) -> StoreStatistics: ...


class Census(NamedTuple):
    """there: how many are counted now · known: the process that asks was one of them before."""

    there: int
    known: bool


class Receiver(Protocol):
    """Whom an answer is for; a future is one. Told once, unless it is done already; raises nothing."""

    def done(self) -> bool: ...

    def set_result(self, result: Any, /) -> object: ...

    def set_exception(self, exception: BaseException, /) -> object: ...


class Leaves(Protocol):
    """What a question travels in."""

    def leave(self) -> None:
        """Whoever was to be told waits no longer."""
        ...


class Shared(Store, Protocol):
    """A store that can tell how many there are who ask it."""

    def begin(self, question: Question, to: Receiver) -> Leaves | None:
        """Ask, and wait for nothing: `to` is told in a later turn of the loop, or an error, perhaps in
        this one, but never before this returns. None, and nobody is told anything, where it takes more
        than one call. Raises nothing."""
        ...

    async def census(self, group: str, *, process: str, ttl: float) -> Census:
        """Be counted as one of `group` for `ttl` seconds, or with 0 no longer.

        Every process has a name of its own; saying it again within its time renews it.
        """
        ...
