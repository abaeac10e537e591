"""A waiting line, a vendor's or the pod's: strict classes, inside each a fair queue between tenants.

Self-clocked fair queueing (S. J. Golestani, INFOCOM 1994): a call of cost c by a tenant of weight w
is stamped `finish = max(V, last finish of its tenant) + c / w`, where V is the stamp of the call
served last; the lowest stamp goes first. A tenant that floods only lengthens its own stamps.

Two things are added. A tenant whose last finish lies behind V, because it asked for nothing meanwhile,
may catch up by its credit, `CREDIT` calls at most: its call is stamped as early as `V − credit · c / w`.
Otherwise whoever asks for its equal part, now and then a little late, would get less than that part, and
those who always ask would get the rest. And a call that leaves unserved gives its tenant back what it
was stamped for.

Pure data, no clock and no await. Joining, leaving and serving are O(log n) amortised: who leaves is
struck out in place and swept when the struck outnumber the standing.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from headworks.current import Criticality

T = TypeVar("T")

CREDIT = 8
"""Calls by which a tenant that asked for nothing for a while may be served earlier."""

REMEMBERED = 1024
"""Tenants with nobody in line whose stamps are kept at least. One that is not known has no credit."""

LEAST = 1e-6
"""What a call is stamped for at least, as an average of stamps that were added and taken away again."""

LOOKED_AT = 64
"""Tenants up to which each one's calls are looked at to tell how many go first."""

SWEEP = 64
"""Struck places met on one look along the line before they are swept out."""


class Ahead(NamedTuple):
    """About how many calls would be served before one more, if each tenant's stamps are evenly spaced.

    now    of those that stand in line
    later  of those that tenants with calls in line may still ask for meanwhile, at most
    """

    now: int
    later: int


@dataclass(slots=True)
class Waiter(Generic[T]):
    """One place in the line.

    units   the cost that fairness weighs, in tokens where known
    credit  calls by which its tenant may catch up
    """

    payload: T
    tenant: str
    criticality: Criticality
    units: int = 1
    weight: int = 1
    credit: int = CREDIT
    finish: float = 0.0
    standing: bool = False

    def stamp(self) -> float:
        """What it is stamped for: its cost by its tenant's weight."""
        return _stamp(self.units, self.weight)


def _stamp(units: int, weight: int) -> float:
    return max(units, 1) / max(weight, 1)


@dataclass(slots=True)
class _Tenant:
    """One tenant in one class: its last stamp, its calls in line, and what these were stamped for."""

    last: float
    calls: int = 0
    stamped: float = 0.0

    def each(self) -> float:
        """What its calls in line were stamped for, on average."""
        return max(self.stamped / self.calls, LEAST)


@dataclass(slots=True)
class _Class(Generic[T]):
    """One class's queue."""

    heap: list[tuple[float, int, Waiter[T]]] = field(default_factory=list)
    served: float = 0.0
    tenants: dict[str, _Tenant] = field(default_factory=dict)
    standing: dict[str, _Tenant] = field(default_factory=dict)
    struck: int = 0

    def __len__(self) -> int:
        return len(self.heap) - self.struck

    def start(self, tenant: str, each: float, credit: int) -> float:
        """Where the next call of a tenant begins; `each` is what it is stamped for."""
        known = self.tenants.get(tenant)
        return self.served if known is None else max(known.last, self.served - credit * each)

    def push(self, waiter: Waiter[T], number: int) -> None:
        each = waiter.stamp()
        waiter.finish = self.start(waiter.tenant, each, waiter.credit) + each
        waiter.standing = True
        tenant = self.tenants.get(waiter.tenant)
        if tenant is None:
            self._forget()
            tenant = self.tenants[waiter.tenant] = _Tenant(waiter.finish)
        tenant.last = waiter.finish
        tenant.calls += 1
        tenant.stamped += each
        self.standing[waiter.tenant] = tenant
        heapq.heappush(self.heap, (waiter.finish, number, waiter))

    def _forget(self) -> None:
        """Drop the stamps that hold nobody back, when there are many."""
        if len(self.tenants) > 2 * len(self.standing) + REMEMBERED:
            kept = self.standing
            self.tenants = {
                name: tenant
                for name, tenant in self.tenants.items()
                if name in kept or tenant.last > self.served
            }

    def head(self) -> Waiter[T] | None:
        while self.heap and not self.heap[0][2].standing:
            heapq.heappop(self.heap)
            self.struck -= 1
        return self.heap[0][2] if self.heap else None

    def pop(self) -> Waiter[T] | None:
        waiter = self.head()
        if waiter is None:
            return None
        heapq.heappop(self.heap)
        self.served = max(self.served, waiter.finish)
        self._gone(waiter)
        return waiter

    def nth(self, n_th: int) -> Waiter[T] | None:
        """Who would be served after n others; looks at about n entries, however long the queue."""
        n = n_th
        frontier, struck = [(self.heap[0][:2], 0)] if self.heap else [], 0
        while frontier and struck <= SWEEP:
            _, at = heapq.heappop(frontier)
            for child in (2 * at + 1, 2 * at + 2):
                if child < len(self.heap):
                    heapq.heappush(frontier, (self.heap[child][:2], child))
            waiter = self.heap[at][2]
            if waiter.standing:
                if n == 0:
                    return waiter
                n -= 1
            else:
                struck += 1
        if not frontier:
            return None
        self.sweep()
        return self.nth(n_th)

    def sweep(self) -> None:
        """Drop the struck."""
        self.heap = [entry for entry in self.heap if entry[2].standing]
        heapq.heapify(self.heap)
        self.struck = 0

    def strike(self, waiter: Waiter[T]) -> None:
        self.struck += 1
        self.tenants[waiter.tenant].last -= waiter.stamp()
        self._gone(waiter)
        if self.struck > len(self.heap) // 2:
            self.sweep()

    def ahead(self, tenant: str, each: float, credit: int) -> Ahead:
        """Who would be served before one more of this tenant, those in line and those still to come."""
        finish, standing = self.start(tenant, each, credit) + each, self.standing
        if len(standing) > LOOKED_AT:
            mean = sum(other.each() for other in islice(standing.values(), LOOKED_AT)) / LOOKED_AT
            own = standing[tenant].calls if tenant in standing else 0
            turns = math.ceil(max(finish - self.served, 0.0) / mean * len(standing))
            now = min(len(self), max(own, turns))
            return Ahead(now, max(turns - now, 0))
        now = later = 0
        for name, other in standing.items():
            turns = math.ceil((other.last - finish) / other.each())
            now += other.calls - min(max(turns, 0), other.calls)
            later += max(-turns, 0) if name != tenant else 0
        return Ahead(now, later)

    def _gone(self, waiter: Waiter[T]) -> None:
        waiter.standing = False
        tenant = self.tenants[waiter.tenant]
        tenant.calls -= 1
        tenant.stamped -= waiter.stamp()
        if tenant.calls <= 0:
            tenant.stamped = 0.0
            del self.standing[waiter.tenant]
        if not self.standing:  # nobody left to be fair between: stamps start afresh
            self.tenants.clear()
            self.served = 0.0


class Line(Generic[T]):
    """Who waits, and who is next."""

    def __init__(self) -> None:
        self._classes: dict[Criticality, _Class[T]] = {
            criticality: _Class() for criticality in sorted(Criticality, reverse=True)
        }
        self._number = 0

    def __len__(self) -> int:
        return sum(map(len, self._classes.values()))

    def join(self, waiter: Waiter[T]) -> None:
        """Stand in line. A waiter joins once."""
        self._number += 1
        self._classes[waiter.criticality].push(waiter, self._number)

    def leave(self, waiter: Waiter[T]) -> None:
        """Step out of the line; leaving twice, or after having been served, does nothing."""
        if waiter.standing:
            self._classes[waiter.criticality].strike(waiter)

    def head(self) -> Waiter[T] | None:
        """Who goes next: the highest class, in it the lowest stamp. None when nobody waits."""
        for queue in self._classes.values():
            head = queue.head()
            if head is not None:
                return head
        return None

    def nth(self, n: int) -> Waiter[T] | None:
        """Who goes after n others, as the line stands now. None when fewer wait."""
        for queue in self._classes.values():
            if n < len(queue):
                return queue.nth(n)
            n -= len(queue)
        return None

    def pop(self) -> Waiter[T] | None:
        """Take the head out of the line."""
        for queue in self._classes.values():
            if len(queue):
                return queue.pop()
        return None

    def ahead(
        self,
        tenant: str,
        criticality: Criticality,
        units: int = 1,
        weight: int = 1,
        credit: int = CREDIT,
    ) -> Ahead:
        """Who would be served before one more of this tenant, class, cost, weight and credit.

        Everyone in higher classes, and in its own those with an earlier stamp: a tenant with nothing in
        line is at most one round away, however long a flooder's.
        """
        higher = sum(len(queue) for other, queue in self._classes.items() if other > criticality)
        own = self._classes[criticality].ahead(tenant, _stamp(units, weight), credit)
        return Ahead(higher + own.now, own.later)

    def waiters(self) -> list[Waiter[T]]:
        """Everyone standing, in no particular order."""
        return [
            entry[2] for queue in self._classes.values() for entry in queue.heap if entry[2].standing
        ]

    def in_order(self) -> Iterator[Waiter[T]]:
        """Everyone standing, as they would be served if nobody else came."""
        for queue in self._classes.values():
            for entry in sorted(queue.heap, key=lambda entry: entry[:2]):
                if entry[2].standing:
                    yield entry[2]
