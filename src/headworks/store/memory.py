"""The store within one process: the same questions and verdicts, over dictionaries.

Everything between question and verdict is synchronous, so on one event loop every question is
atomic. The question that nearly everybody asks, one limit and now, is answered in place (`taking.py`);
everything else goes through the functions of `limits.bucket` and `limits.window`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headworks.limits import breaker, bucket, window
from headworks.limits.breaker import BreakerState
from headworks.limits.shapes import NEVER_US, Bucket, Shape, Window
from headworks.store.protocol import (
    Ask,
    Census,
    Correction,
    Gate,
    Hears,
    Learns,
    Leaves,
    Question,
    Receiver,
    Report,
    Standing,
    StoreStatistics,
)
from headworks.store.shelf import (
    LOOK_EVERY_US,
    KeptLevel,
    KeptLog,
    Shelf,
    kept_level,
    kept_log,
    level_of,
    level_until,
    log_of,
    log_until,
)
from headworks.store.taking import SECOND, Take, loop_clock, taking
from headworks.verdict import NEVER, LimitState, Verdict

DEMAND_US = 10 * SECOND
"""How long a pod's report of its demand stands."""

SHAPES = 4096
"""Shapes whose way of taking is kept."""


class MemoryStore:
    """State of this process only: the embedded default, and what the ladder falls back on.

    clock  microseconds, never running backwards; default: the running event loop's time
    """

    def __init__(self, clock: Callable[[], int] | None = None) -> None:
        self.clock = clock or loop_clock()
        self.levels: Shelf[KeptLevel] = Shelf(level_until)
        self.logs: Shelf[KeptLog] = Shelf(log_until)
        self._gates: Shelf[tuple[int, BreakerState]] = Shelf(lambda held: held[0])
        self.look_at = 0
        self._takes: dict[int, tuple[Take, Shape]] = {}
        self._demand: dict[str, dict[str, tuple[int, int]]] = {}
        self._leases: dict[str, dict[str, tuple[int, int]]] = {}
        self._fence = 0
        self._groups: dict[str, dict[str, int]] = {}
        self.answered = self._reports = 0

    def __len__(self) -> int:
        """Keys whose state is held, forgotten ones included until their turn comes."""
        return len(self.levels) + len(self.logs) + len(self._gates)

    def taking(self, shape: Shape) -> Take:
        """What takes from limits of this shape, without a question being written (`store/taking.py`)."""
        if len(self._takes) >= SHAPES:
            self._takes.clear()
        take = taking(self, shape)
        self._takes[id(shape)] = take, shape  # held, so that its id stays its own
        return take

    async def ask(self, question: Question) -> Verdict:
        return self.ask_nowait(question)

    def ask_nowait(self, question: Question) -> Verdict:
        """Decide one question without waiting for anything."""
        asks, horizon, gate, _, demand = question
        if len(asks) == 1 and not horizon and gate is None and not demand:
            name, key, shape, cost = asks[0]
            known = self._takes.get(id(shape))
            take = self.taking(shape) if known is None else known[0]
            if (verdict := take(name, key, cost)) is not None:
                return verdict
        return self._decide(question)

    def _decide(self, question: Question) -> Verdict:
        self.answered += 1
        now = self.clock()
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
        if gate is not None and (probe or state.cool_until):
            state, *_ = breaker.admit(state, gate.rules, now, at)
            self._keep_gate(gate, state, now)
        for ask in question.asks:
            if ask.cost:
                self._spend(ask, at, now)
        limits = tuple(self._limit(ask, now, True, now) for ask in question.asks)
        wait_s = (at - now) / SECOND
        return Verdict(True, 0.0, limits, wait_s, at, state.epoch, probe, demand=demand)

    def _earliest(self, ask: Ask, now: int) -> int:
        if isinstance(ask.shape, Bucket):
            return bucket.earliest(self._level(ask.key, now), ask.shape, ask.cost, now)
        return window.earliest(self._log(ask.key, now), ask.shape, ask.cost, now)

    def _spend(self, ask: Ask, at: int, now: int) -> None:
        if isinstance(ask.shape, Bucket):
            level = bucket.spend(self._level(ask.key, now), ask.shape, ask.cost, at, now)
            self._keep_level(ask.key, level, now)
        else:
            log = window.spend(self._log(ask.key, now), ask.shape, ask.cost, at, now)
            self._keep_log(ask.key, log, ask.shape, now)

    def _limit(self, ask: Ask, now: int, allowed: bool, time: int) -> LimitState:
        shape = ask.shape
        if isinstance(shape, Bucket):
            level = self._level(ask.key, now)
            left, clears = bucket.remaining(level, shape, now), bucket.clears(level, shape, now)
        else:
            log = self._log(ask.key, now)
            left, clears = window.remaining(log, shape, now), window.clears(log, shape, now)
        return LimitState(
            name=ask.name,
            limit=shape.limit,
            window=shape.period,
            allowed=allowed,
            remaining=left,
            reset=(clears - now) / SECOND,
            retry_after=NEVER if time == NEVER_US else (time - now) / SECOND,
        )

    def _level(self, key: str, now: int) -> bucket.Level:
        return level_of(self.levels.held.get(key), now)

    def _keep_level(self, key: str, level: bucket.Level, now: int) -> None:
        self.levels.keep(key, kept_level(level))
        if now >= self.look_at:
            self.look(now)

    def _log(self, key: str, now: int) -> window.Log:
        return log_of(self.logs.held.get(key), now)

    def _keep_log(self, key: str, log: window.Log, shape: Window, now: int) -> None:
        self.logs.keep(key, kept_log(log, shape.period_us))
        if now >= self.look_at:
            self.look(now)

    def look(self, now: int) -> None:
        """Drop a few states that have had their time; soon again, where there were many."""
        many = [shelf.look(now) for shelf in (self.levels, self.logs, self._gates)]
        self.look_at = now if any(many) else now + LOOK_EVERY_US

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

    def begin(self, question: Question, to: Receiver) -> Leaves | None:
        """Nothing is ever on its way."""
        return None

    def put(self, question: Question, to: Hears, first: Learns | None = None) -> bool:
        """Nothing is ever waited for in here."""
        return False

    async def report(self, report: Report) -> Standing:
        return self.report_nowait(report)

    def report_nowait(self, report: Report) -> Standing:
        """Take in one report without waiting for anything."""
        self._reports += 1
        now = self.clock()
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
            self._keep_level(key, bucket.correct(self._level(key, now), shape, *change), now)
        else:
            self._keep_log(key, window.correct(self._log(key, now), shape, *change), shape, now)

    def _gate(self, gate: Gate, now: int) -> BreakerState:
        until, state = self._gates.held.get(gate.key, (0, BreakerState()))
        if until <= now:
            state = breaker.begun(now)
            self._keep_gate(gate, state, now)
        return state

    def _keep_gate(self, gate: Gate, state: BreakerState, now: int) -> None:
        self._gates.keep(gate.key, (breaker.forgotten_at(state, gate.rules, now), state))
        if now >= self.look_at:
            self.look(now)

    async def lease(self, key: str, *, holder: str, limit: int, ttl: float) -> int:
        now = self.clock()
        held = {who: lease for who, lease in self._leases.get(key, {}).items() if lease[0] > now}
        if holder not in held:
            if len(held) >= limit:
                return 0
            self._fence = max(now, self._fence + 1)
            held[holder] = (0, self._fence)
        fence = held[holder][1]
        held[holder] = (now + round(ttl * SECOND), fence)
        self._leases[key] = held
        return fence

    async def release(self, key: str, *, holder: str) -> None:
        held = self._leases.get(key, {})
        held.pop(holder, None)
        if not held:
            self._leases.pop(key, None)

    async def census(self, group: str, *, process: str, ttl: float) -> Census:
        now, before = self.clock(), self._groups.get(group, {})
        there = self._groups[group] = {who: ends for who, ends in before.items() if ends > now}
        known = there.pop(process, None) is not None
        if ttl > 0:
            there[process] = now + round(ttl * SECOND)
        return Census(len(there), known)

    async def forget(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.forget_nowait(key)

    def forget_nowait(self, key: str) -> None:
        """Forget one key without waiting for anything."""
        if key in self.levels.held:  # their places in the turn stay their own
            self.levels.held[key] = (0, 0)
        if key in self.logs.held:
            self.logs.held[key] = (0, window.EMPTY)
        if key in self._gates.held:
            self._gates.held[key] = (0, BreakerState())
        self._demand.pop(key, None)
        self._leases.pop(key, None)

    async def aclose(self) -> None:
        """Nothing to close: the state goes with the object."""

    def statistics(self) -> StoreStatistics:
        return StoreStatistics("memory", questions=self.answered, reports=self._reports)
