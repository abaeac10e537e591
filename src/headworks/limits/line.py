"""A waiting line, a vendor's or the pod's: strict classes, inside each a fair queue between tenants.

Self-clocked fair queueing (S. J. Golestani, INFOCOM 1994): a call of cost c by a tenant of weight w
is stamped `finish = max(V, last finish of its tenant) + c / w`, where V is the stamp of the call
served last; the lowest stamp goes first. A tenant that floods only lengthens its own stamps.

Pure data, no clock and no await. Joining, leaving and serving are O(log n) amortised: who leaves is
struck out in place and swept when the struck outnumber the standing.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from headworks.current import Criticality

T = TypeVar("T")

LOOKED_AT = 64
"""Tenants up to which each one's calls are looked at to tell how many go first."""

SWEEP = 64
"""Struck places met on one look along the line before they are swept out."""


@dataclass(slots=True)
class Waiter(Generic[T]):
    """One place in the line. `units` is the cost that fairness weighs, in tokens where known."""

    payload: T
    tenant: str
    criticality: Criticality
    units: int = 1
    weight: int = 1
    finish: float = 0.0
    standing: bool = False


@dataclass(slots=True)
class _Class(Generic[T]):
    """One class's queue."""

    heap: list[tuple[float, int, Waiter[T]]] = field(default_factory=list)
    served: float = 0.0
    last: dict[str, float] = field(default_factory=dict)
    standing: Counter[str] = field(default_factory=Counter)
    struck: int = 0

    def __len__(self) -> int:
        return len(self.heap) - self.struck

    def push(self, waiter: Waiter[T], number: int) -> None:
        start = max(self.served, self.last.get(waiter.tenant, 0.0))
        waiter.finish = self.last[waiter.tenant] = start + max(waiter.units, 1) / max(waiter.weight, 1)
        waiter.standing = True
        self.standing[waiter.tenant] += 1
        if len(self.last) > 2 * len(self.standing) + 64:  # stamps that no longer hold anyone back
            self.last = {tenant: at for tenant, at in self.last.items() if at > self.served}
        heapq.heappush(self.heap, (waiter.finish, number, waiter))

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
        self.served = waiter.finish
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
        self._gone(waiter)
        if self.struck > len(self.heap) // 2:
            self.sweep()

    def _gone(self, waiter: Waiter[T]) -> None:
        waiter.standing = False
        self.standing[waiter.tenant] -= 1
        if self.standing[waiter.tenant] <= 0:
            del self.standing[waiter.tenant]
        if not self.standing:  # nobody left to be fair between: stamps start afresh
            self.last.clear()
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

    def standing(self, tenant: str, criticality: Criticality) -> int:
        """How many calls of this tenant and class stand in line."""
        return self._classes[criticality].standing[tenant]

    def ahead(self, tenant: str, criticality: Criticality) -> int:
        """About how many calls would be served before one more of this tenant and class.

        Everyone in higher classes, and in its own as many rounds as the tenant already has calls
        waiting: a tenant with nothing in line is at most one round away, however long a flooder's.
        """
        higher = sum(len(queue) for other, queue in self._classes.items() if other > criticality)
        queue = self._classes[criticality]
        rounds = self.standing(tenant, criticality) + 1
        if len(queue.standing) > LOOKED_AT:
            return higher + min(len(queue), rounds * len(queue.standing))
        return higher + sum(min(calls, rounds) for calls in queue.standing.values())

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
