"""What this process took of the limits behind gates, to be told to a store that does not know of it.

    told     the store has it; needed again should the store forget everything
    untold   charged in a report that the store may not have heard, or told to a store that has forgotten

A store that has forgotten is known by a gate's epoch, which begins at the time of its birth
(`limits.breaker`): a gate that was born after it was last heard is another one, and all that was told is
untold. Every process tells after its next beat (`heartbeat.py`), and asks nothing of such a gate for
`HAND_OVER` seconds: by then the others have told, too. Telling twice charges twice, which harms nobody,
so what fails is repeated.

Units are remembered by sub-bucket, for as long as they count: of a window its period, of a bucket the
time that a whole burst takes to be paid, as what was owed before that has been paid since.
"""

from __future__ import annotations

from collections.abc import Iterable

from headworks.limits.shapes import Shape, Window
from headworks.store.heartbeat import EVERY, PATIENCE
from headworks.store.protocol import Correction, Gate, Question
from headworks.verdict import Verdict

HAND_OVER = EVERY + 2 * PATIENCE
"""Seconds within which every process finds a store that is back, and beats once."""
EXPIRES_MS = 1_800_000
"""A gate that granted something more recently has not run out by itself: it lives an hour."""
MOVES_MS = 1000
"""By so much an epoch may have risen beyond the time of its birth, by one with each move."""
GRAINS = 60
"""Sub-buckets in which a bucket's units are remembered."""
SECOND = 1_000_000

Units = dict[int, int]
"""By the last microsecond of their sub-bucket, on the store's clock."""


class Taken:
    """What was taken of one limit."""

    def __init__(self, shape: Shape) -> None:
        self.told: Units = {}
        self.untold: Units = {}
        self.shaped(shape)

    def shaped(self, shape: Shape) -> None:
        """It has this shape now; what was taken stays."""
        self.shape = shape
        if isinstance(shape, Window):
            self.span_us, self._grain = shape.period_us, shape.grain_us
        else:
            self.span_us = -(-shape.burst * shape.pace_us // shape.pace_per)
            self._grain = max(1, self.span_us // GRAINS)

    def add(self, units: Units, at_us: int, more: int) -> None:
        """So many units more, or less, for that time; what no longer counts then is dropped."""
        end = at_us - at_us % self._grain + self._grain - 1
        left = units.get(end, 0) + more
        if left > 0:
            units[end] = left
        else:
            units.pop(end, None)
        if len(units) > 2 * GRAINS:
            for old in [old for old in units if old <= at_us - self.span_us]:
                del units[old]

    def forgotten(self) -> None:
        """The store does not know any of it."""
        for end, units in self.told.items():
            self.add(self.untold, end, units)
        self.told.clear()

    def counts_at(self, now_us: int) -> bool:
        """Whether anything still counts."""
        return max((*self.told, *self.untold), default=0) > now_us - self.span_us


class Behind:
    """A gate and the limits behind it.

    heard_ms  when the store last granted something, on its clock; 0: never
    until     nothing is asked before, on the loop's clock
    """

    def __init__(self, gate: Gate) -> None:
        self.gate, self.heard_ms, self.until = gate, 0, 0.0
        self.limits: dict[str, Taken] = {}


class Recall:
    """Synchronous; the ladder talks to the store."""

    def __init__(self) -> None:
        self._behind: dict[str, Behind] = {}
        self._limits: dict[str, Taken] = {}
        self._ahead_us = 0

    def gates(self) -> list[Gate]:
        """Those behind which anything was ever taken."""
        return [behind.gate for behind in self._behind.values()]

    def rests(self, gate: Gate, now: float) -> float:
        """Seconds for which nothing is to be asked about what stands behind this gate."""
        behind = self._behind.get(gate.key)
        return behind.until - now if behind is not None else 0.0

    def granted(self, question: Question, verdict: Verdict, now: float) -> None:
        """The store has let somebody book."""
        asks, _, gate, _, _ = question
        if gate is not None:
            behind = self._behind.get(gate.key)
            if behind is None:
                behind = self._behind[gate.key] = Behind(gate)
            now_us = verdict.at_us - round(verdict.wait * SECOND)
            behind.heard_ms = max(behind.heard_ms, now_us // 1000)
            self._ahead_us = now_us - round(now * SECOND)
            for ask in asks:
                if ask.key not in behind.limits:
                    self._meet(behind, ask.key, ask.shape, now_us)
        for _, key, shape, cost in asks:
            if (taken := self._limits.get(key)) is not None:
                if taken.shape is not shape:
                    taken.shaped(shape)
                taken.add(taken.told, verdict.at_us, cost)

    def _meet(self, behind: Behind, key: str, shape: Shape, now_us: int) -> None:
        """A limit that is new here; those of days that are over make room."""
        for old in [old for old, taken in behind.limits.items() if not taken.counts_at(now_us)]:
            del behind.limits[old], self._limits[old]
        behind.limits[key] = self._limits[key] = Taken(shape)

    def born_anew(self, gate: Gate, epoch: int, now: float) -> bool:
        """Whether the store that says so is another one than was heard last: it has forgotten what was
        taken, and what it grants is not to be believed."""
        behind = self._behind.get(gate.key)
        if behind is None or not 0 < behind.heard_ms < epoch < behind.heard_ms + EXPIRES_MS:
            return False
        behind.heard_ms, behind.until = epoch + MOVES_MS, now + HAND_OVER
        for taken in behind.limits.values():
            taken.forgotten()
        return True

    def untold(self, gate: Gate, now: float) -> tuple[Correction, ...]:
        """What the store has to be told, as far as it counts. It is in the caller's hands then: told or
        not, it comes back by `corrected`."""
        now_us, limits = self._ahead_us + round(now * SECOND), self._behind[gate.key].limits
        owed = tuple(
            Correction(key, taken.shape, units, end)
            for key, taken in limits.items()
            for end, units in taken.untold.items()
            if end > now_us - taken.span_us
        )
        for taken in limits.values():
            taken.untold.clear()
        return owed

    def corrected(self, corrections: Iterable[Correction], *, heard: bool) -> None:
        """What was taken turned out more, or less; what the store did not hear of stays untold, and what
        it was to give back stays taken."""
        for change in corrections:
            taken = self._limits.get(change.key)
            if taken is not None and (heard or change.units > 0):
                taken.add(taken.told if heard else taken.untold, change.at_us, change.units)
