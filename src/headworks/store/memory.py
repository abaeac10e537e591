"""The store within one process: the same questions and verdicts, over dictionaries.

Everything between question and verdict is synchronous, so on one event loop every question is
atomic. A key's state is dropped once it is as good as new; a few keys are looked at on every write,
in turn, so nothing ever sweeps them all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from headworks.limits import breaker, bucket, window
from headworks.limits.breaker import BreakerState
from headworks.limits.shapes import NEVER_US, Bucket
from headworks.store.protocol import Ask, Correction, Gate, Question, Report, Standing, StoreStatistics
from headworks.verdict import NEVER, LimitState, Verdict

S = TypeVar("S")

SECOND = 1_000_000
DEMAND_US = 10 * SECOND
"""How long a pod's report of its demand stands."""


def loop_clock() -> int:
    """The running event loop's time in microseconds."""
    return int(asyncio.get_running_loop().time() * SECOND)


class _Shelf(Generic[S]):
    """States by key, each with the time at which it may be forgotten."""

    __slots__ = ("_new", "_states", "_turn")

    def __init__(self, new: S) -> None:
        self._new = new
        self._states: dict[str, tuple[int, S]] = {}
        self._turn: deque[str] = deque()

    def __len__(self) -> int:
        return len(self._states)

    def get(self, key: str, now: int) -> S:
        """The state of `key`, new when there is none or it has been forgotten by now."""
        held = self._states.get(key)
        return self._new if held is None or held[0] <= now else held[1]

    def put(self, key: str, state: S, until: int, now: int) -> None:
        """Keep the state until then, and drop up to two others that have had their time."""
        if key not in self._states:
            self._turn.append(key)
        self._states[key] = (until, state)
        for _ in range(min(2, len(self._turn))):
            oldest = self._turn.popleft()
            if self._states[oldest][0] > now:
                self._turn.append(oldest)
            else:
                del self._states[oldest]

    def forget(self, key: str) -> None:
        """As if nothing had ever been kept."""
        if key in self._states:
            self._states[key] = (0, self._new)


class MemoryStore:
    """State of this process only: the embedded default, and what the ladder falls back on.

    clock  microseconds, never running backwards; default: the running event loop's time
    """

    def __init__(self, clock: Callable[[], int] | None = None) -> None:
        self._clock = clock or loop_clock
        self._levels: _Shelf[bucket.Level] = _Shelf(bucket.IDLE)
        self._logs: _Shelf[window.Log] = _Shelf(window.EMPTY)
        self._gates: _Shelf[BreakerState] = _Shelf(BreakerState())
        self._demand: dict[str, dict[str, tuple[int, int]]] = {}
        self._leases: dict[str, dict[str, int]] = {}
        self._questions = self._reports = 0

    def __len__(self) -> int:
        """Keys whose state is held, forgotten ones included until their turn comes."""
        return len(self._levels) + len(self._logs) + len(self._gates)

    async def ask(self, question: Question) -> Verdict:
        return self.ask_nowait(question)

    def ask_nowait(self, question: Question) -> Verdict:
        """Decide one question without waiting for anything."""
        self._questions += 1
        now = self._clock()
        demand = self._demanded(question, now)
        gate = question.gate
        state, blocked, wait, probe = BreakerState(), None, 0, 0
        if gate is not None:
            state = self._gate(gate, now)
            _, blocked, wait, probe = breaker.admit(state, gate.rules, now)
            if blocked is not None:
                epoch = state.epoch
                return Verdict(False, wait / SECOND, blocked=blocked, epoch=epoch, demand=demand)
        times = [self._earliest(ask, now) for ask in question.asks]
        at, horizon = max(times, default=now), round(question.horizon * SECOND)
        if NEVER_US in times or at > now + horizon:
            again = NEVER if NEVER_US in times else (at - now - horizon) / SECOND
            limits = tuple(
                self._limit(ask, now, NEVER_US < time <= now + horizon, time)
                for ask, time in zip(question.asks, times, strict=True)
            )
            return Verdict(False, again, limits, epoch=state.epoch, demand=demand)
        if gate is not None and probe:
            state, *_ = breaker.admit(state, gate.rules, now, at)
            self._keep_gate(gate, state, now)
        for ask in question.asks:
            self._spend(ask, at, now)
        limits = tuple(self._limit(ask, now, True, now) for ask in question.asks)
        wait_s = (at - now) / SECOND
        return Verdict(True, 0.0, limits, wait_s, at, state.epoch, probe, demand=demand)

    def _earliest(self, ask: Ask, now: int) -> int:
        if isinstance(ask.shape, Bucket):
            return bucket.earliest(self._levels.get(ask.key, now), ask.shape, ask.cost, now)
        return window.earliest(self._logs.get(ask.key, now), ask.shape, ask.cost, now)

    def _spend(self, ask: Ask, at: int, now: int) -> None:
        if not ask.cost:
            return
        if isinstance(ask.shape, Bucket):
            level = bucket.spend(self._levels.get(ask.key, now), ask.shape, ask.cost, at, now)
            self._levels.put(ask.key, level, bucket.clears(level, ask.shape, now), now)
        else:
            log = window.spend(self._logs.get(ask.key, now), ask.shape, ask.cost, at, now)
            self._logs.put(ask.key, log, window.clears(log, ask.shape, now), now)

    def _limit(self, ask: Ask, now: int, allowed: bool, time: int) -> LimitState:
        shape = ask.shape
        if isinstance(shape, Bucket):
            level = self._levels.get(ask.key, now)
            left, clears = bucket.remaining(level, shape, now), bucket.clears(level, shape, now)
        else:
            log = self._logs.get(ask.key, now)
            left, clears = window.remaining(log, shape, now), window.clears(log, shape, now)
        return LimitState(
            name=ask.name,
            limit=shape.limit,
            window=shape.period_us / SECOND,
            allowed=allowed,
            remaining=left,
            reset=(clears - now) / SECOND,
            retry_after=NEVER if time == NEVER_US else (time - now) / SECOND,
        )

    def _demanded(self, question: Question, now: int) -> float:
        units = round(question.demand * 1000)
        if units <= 0 or not (question.gate or question.asks):
            return 0.0
        key = question.gate.key if question.gate else question.asks[0].key
        pods = self._demand.setdefault(key, {})
        pods[question.pod] = (units, now)
        for pod in [pod for pod, (_, at) in pods.items() if at <= now - DEMAND_US]:
            del pods[pod]
        return sum(units for units, _ in pods.values()) / 1000

    async def report(self, report: Report) -> Standing:
        return self.report_nowait(report)

    def report_nowait(self, report: Report) -> Standing:
        """Take in one report without waiting for anything."""
        self._reports += 1
        now = self._clock()
        for correction in report.corrections:
            self._correct(correction, now)
        if report.gate is None:
            return Standing()
        state = self._gate(report.gate, now)
        cool_down = round(report.cool_down * SECOND)
        told = breaker.record(
            state,
            report.gate.rules,
            now,
            report.ending,
            report.slow,
            report.epoch,
            report.probe,
            cool_down,
        )
        if told != state:
            self._keep_gate(report.gate, told, now)
        return Standing(told.epoch, (breaker.shut_until(told, now) - now) / SECOND)

    def _correct(self, correction: Correction, now: int) -> None:
        key, shape = correction.key, correction.shape
        change = (correction.units, correction.at_us, now)
        if isinstance(shape, Bucket):
            level = bucket.correct(self._levels.get(key, now), shape, *change)
            self._levels.put(key, level, bucket.clears(level, shape, now), now)
        else:
            log = window.correct(self._logs.get(key, now), shape, *change)
            self._logs.put(key, log, window.clears(log, shape, now), now)

    def _gate(self, gate: Gate, now: int) -> BreakerState:
        state = self._gates.get(gate.key, now)
        if not state.epoch:
            state = breaker.begun(now)
            self._keep_gate(gate, state, now)
        return state

    def _keep_gate(self, gate: Gate, state: BreakerState, now: int) -> None:
        self._gates.put(gate.key, state, breaker.forgotten_at(state, gate.rules, now), now)

    async def lease(self, key: str, *, holder: str, limit: int, ttl: float) -> bool:
        now = self._clock()
        held = {who: until for who, until in self._leases.get(key, {}).items() if until > now}
        if holder not in held and len(held) >= limit:
            return False
        held[holder] = now + round(ttl * SECOND)
        self._leases[key] = held
        return True

    async def release(self, key: str, *, holder: str) -> None:
        held = self._leases.get(key, {})
        held.pop(holder, None)
        if not held:
            self._leases.pop(key, None)

    async def forget(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.forget_nowait(key)

    def forget_nowait(self, key: str) -> None:
        """Forget one key without waiting for anything."""
        self._levels.forget(key)
        self._logs.forget(key)
        self._gates.forget(key)
        self._demand.pop(key, None)
        self._leases.pop(key, None)

    async def aclose(self) -> None:
        """Nothing to close: the state goes with the object."""

    def statistics(self) -> StoreStatistics:
        return StoreStatistics("memory", questions=self._questions, reports=self._reports)
