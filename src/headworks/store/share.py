"""One process's part of every limit, while the shared store is away.

With N processes (`heartbeat.py`), a limit of L per W becomes L/N per W here, evenly paced and without
any burst: a cost passes when the ones before it have been paid off at that rate. So k processes that are
cut off while the others still share the store let at most L·(1 + k/N) through.

Where the last reply of the store left room, the first unit passes at once. A key of which nothing is
known: a vendor's quota (it has a gate) starts empty and waits for its first unit; a user's limit starts
with one, so that nobody is refused for what others may have taken. What was taken alone is not forgotten
when the store comes back: a store that comes and goes does not hand out a first unit each time. Users'
limits, which have no gate, keep at least one unit per W however many processes there are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

from headworks.limits.shapes import Bucket
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Ask, Gate, Question, Report, Standing
from headworks.verdict import Verdict

REMEMBERED = 10_000
"""Keys whose last reply is remembered at most. Of those without a gate, the half that was heard of last
is never forgotten: when those are so many, they become the old ones, and the old ones are forgotten."""
SEEN = 100_000
"""Keys met since the store went; beyond this they are met afresh, and start empty again."""
LATER_THAN_ANY = 2**53


class LocalShare:
    """Decides alone, synchronously.

    processes  tells N, ≥ 1: how many share what stands behind a gate, or, without one, everything
    """

    def __init__(self, processes: Callable[[Gate | None], int]) -> None:
        self._processes = processes
        self._room: OrderedDict[str, bool] = OrderedDict()
        self._empty: dict[str, None] = {}
        self._emptied: dict[str, None] = {}  # the old ones
        self._epochs: dict[str, int] = {}
        self._store = MemoryStore()
        self._seen: set[str] = set()

    def end(self) -> None:
        """The store is back. The next time it goes, its last replies count anew."""
        self._seen.clear()

    def heard(self, question: Question, verdict: Verdict) -> None:
        """Remember what the shared store last said: of limits behind a gate everything, of others only
        that there was no room, since without it there is some."""
        gate = question[2]
        if gate is None:
            asks, empty = question[0], self._empty
            for i, state in enumerate(verdict[2]):
                if state[4] <= 0:
                    key = asks[i][1]
                    if key not in empty:
                        if len(empty) >= REMEMBERED // 2:
                            self._emptied, empty = empty, {}
                            self._empty = empty
                        empty[key] = None
                elif empty or self._emptied:
                    key = asks[i][1]
                    empty.pop(key, None)
                    self._emptied.pop(key, None)
            return
        self._epochs[gate.key] = verdict.epoch
        for ask, state in zip(question.asks, verdict.limits, strict=False):
            self._room[ask.key] = state.remaining > 0
            self._room.move_to_end(ask.key)
        while len(self._room) > REMEMBERED:
            self._room.popitem(last=False)

    def decide(self, question: Question) -> Verdict:
        """The verdict of this process alone. Its probes have negative numbers, so that their endings
        cannot be taken for those of the shared store's."""
        asks = tuple(self._ours(ask, question.gate) for ask in question.asks)
        verdict = self._store.ask_nowait(question._replace(asks=asks, demand=0.0))
        shapes = zip(question.asks, verdict.limits, strict=False)
        limits = tuple(
            state._replace(limit=ask.shape.limit, window=ask.shape.period_us / 1_000_000)
            for ask, state in shapes
        )
        epoch = self._epochs.get(question.gate.key, 0) if question.gate is not None else 0
        return verdict._replace(limits=limits, epoch=epoch, probe=-verdict.probe, degraded=True)

    def _ours(self, ask: Ask, gate: Gate | None) -> Ask:
        shape, shared = ask.shape, gate is None
        parts = self._processes(gate)
        if shared:
            parts = min(parts, shape.limit)
        burst = min(max(ask.cost, 1), shape.most)  # whole costs, one after the other
        unit = Ask(ask.name, ask.key, Bucket(shape.limit, shape.period_us * parts, 1))
        try:
            ours = ask._replace(shape=Bucket(shape.limit, shape.period_us * parts, burst))
        except ValueError:  # alone it would take more than a hundred days to pay: it never fits
            ours = unit._replace(cost=ask.cost)
        if ask.key not in self._seen:
            if len(self._seen) >= SEEN:
                self._seen.clear()
            self._seen.add(ask.key)
            spent = ask.key in self._empty or ask.key in self._emptied
            if spent if shared else not self._room.get(ask.key):
                self._store.ask_nowait(Question((unit,)))
        return ours

    def report(self, report: Report) -> Standing:
        """Tell the local breaker; costs are not settled alone. Epochs do not move here: the shared
        store's stay good, and its return must not make them look old."""
        if report.gate is None:
            return Standing()
        told = replace(report, corrections=(), epoch=LATER_THAN_ANY, probe=max(0, -report.probe))
        standing = self._store.report_nowait(told)
        return replace(standing, epoch=self._epochs.get(report.gate.key, 0))

    def forget(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._room.pop(key, None)
            self._empty.pop(key, None)
            self._emptied.pop(key, None)
            self._store.forget_nowait(key)
