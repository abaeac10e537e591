"""The store within one process: the same questions and verdicts, over dictionaries.

Everything between question and verdict is synchronous, so on one event loop every question is
atomic. The question that nearly everybody asks, one limit and now, is answered in place, by the
formulas of `limits.bucket` and `limits.window` written out for it; everything else, and every case of
it that is not plain, goes through their functions. The tests hold the two to each other.
"""

from __future__ import annotations

from array import array
from asyncio import get_running_loop
from collections.abc import Callable, Sequence

from headworks.limits import breaker, bucket, window
from headworks.limits.breaker import BreakerState
from headworks.limits.shapes import NEVER_US, Bucket, Shape, Window
from headworks.store.protocol import Ask, Correction, Gate, Question, Report, Standing, StoreStatistics
from headworks.store.shelf import (
    BITS,
    HEAD,
    LOOK_EVERY_US,
    SPAN,
    UNITS,
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
from headworks.verdict import NEVER, LimitState, Verdict

SECOND = 1_000_000
DEMAND_US = 10 * SECOND
"""How long a pod's report of its demand stands."""

_new = tuple.__new__
"""Fills a named tuple in a third of the time its own constructor takes."""


def loop_clock() -> int:
    """The running event loop's time in microseconds."""
    return int(get_running_loop().time() * SECOND)


class MemoryStore:
    """State of this process only: the embedded default, and what the ladder falls back on.

    clock  microseconds, never running backwards; default: the running event loop's time
    """

    def __init__(self, clock: Callable[[], int] | None = None) -> None:
        self._clock = clock or loop_clock
        self._levels: Shelf[KeptLevel] = Shelf(level_until)
        self._logs: Shelf[KeptLog] = Shelf(log_until)
        self._gates: Shelf[tuple[int, BreakerState]] = Shelf(lambda held: held[0])
        self._look_at = 0
        self._demand: dict[str, dict[str, tuple[int, int]]] = {}
        self._leases: dict[str, dict[str, tuple[int, int]]] = {}
        self._fence = 0
        self._questions = self._reports = 0

    def __len__(self) -> int:
        """Keys whose state is held, forgotten ones included until their turn comes."""
        return len(self._levels) + len(self._logs) + len(self._gates)

    async def take(self, name: str, key: str, shape: Shape, cost: int = 1) -> Verdict:
        """The verdict of `ask` on one limit, now, without a question being written."""
        return self.take_nowait(name, key, shape, cost)

    def take_nowait(self, name: str, key: str, shape: Shape, cost: int = 1) -> Verdict:
        """Like `take`, without waiting for anything."""
        if not isinstance(shape, Bucket):
            if (verdict := self._take_log(name, key, shape, cost)) is None:
                return self._decide(Question((Ask(name, key, shape, cost),)))
            self._questions += 1
            return verdict
        clock = self._clock
        now = int(get_running_loop().time() * SECOND) if clock is loop_clock else clock()
        levels = self._levels.held
        held = levels.get(key)
        pace, per, rem = shape.pace_us, shape.pace_per, 0
        if held is None:
            tat, last = now, 0
        elif len(held) == 2:
            tat, last = held
        elif len(held) == 4 and held[3] == per:
            tat, last, rem, _ = held
        else:  # it has had something given back, or is of another rate
            return self._decide(Question((Ask(name, key, shape, cost),)))
        if tat < now or (tat == now and not rem):
            tat, last, rem = now, 0, 0
        self._questions += 1
        need, room = cost * pace, shape.burst * pace - (tat - now)
        if per != 1:
            room -= (tat - now) * (per - 1) + rem
        if need > room:
            retry = NEVER if cost > shape.burst else (-((room - need) // per)) / SECOND
            return self._refusal(name, shape, max(0, room // pace), tat + (rem > 0) - now, retry)
        if cost:
            if per == 1:
                tat += need
            else:
                more, rem = divmod(rem + need, per)
                tat += more
            if now > last:
                last = now
            if held is None:
                self._levels.turn.append(key)
            levels[key] = (tat, last, rem, per) if rem else (tat, last)
            if now >= self._look_at:
                self._look(now)
        reset, left = ((tat + 1 if rem else tat) - now) / SECOND, (room - need) // pace
        state = _new(LimitState, (name, shape.limit, shape.period, True, left, reset, 0.0))
        return _new(Verdict, (True, 0.0, (state,), 0.0, now, 0, 0, None, 0.0, False))

    def _take_log(self, name: str, key: str, shape: Window, cost: int) -> Verdict | None:
        """None where it takes the whole of `limits.window`: where an entry is freed, for example."""
        clock = self._clock
        now = int(get_running_loop().time() * SECOND) if clock is loop_clock else clock()
        held = self._logs.held.get(key)
        limit, period, grain = shape.limit, shape.period_us, shape.grain_us
        end = now - now % grain + grain - 1
        if held is None:
            if not 0 < cost <= limit or cost > UNITS:
                return None
            self._logs.held[key] = array("Q", (end, period, cost, cost))
            self._logs.turn.append(key)
            left = limit - cost
        else:
            if type(held) is not array or held[1] != period:
                return None
            first, newest = held[0], held[-1]
            freed = first + (held[HEAD] >> BITS) + period
            if freed <= now:
                return None
            left = limit - held[2] - cost
            if left < 0:
                return self._full(name, shape, cost, held, freed, now)
            if cost:
                ahead = end - first - (newest >> BITS)
                if not ahead and (newest & UNITS) + cost <= UNITS:
                    held[-1] = newest + cost
                elif ahead > 0 and end - first < SPAN and cost <= UNITS:
                    self._logs.held[key] = held = held + array("Q", ((end - first << BITS) + cost,))
                else:
                    return None
                held[2] += cost
            else:
                end = first + (newest >> BITS)
        if now >= self._look_at:
            self._look(now)
        reset = (end + period - now) / SECOND
        state = _new(LimitState, (name, limit, shape.period, True, left, reset, 0.0))
        return _new(Verdict, (True, 0.0, (state,), 0.0, now, 0, 0, None, 0.0, False))

    def _full(
        self, name: str, shape: Window, cost: int, held: array[int], freed: int, now: int
    ) -> Verdict | None:
        left = max(0, shape.limit - held[2])
        reset = held[0] + (held[-1] >> BITS) + shape.period_us - now
        if cost > shape.limit:
            return self._refusal(name, shape, left, reset, NEVER)
        if cost - shape.limit + held[2] > held[HEAD] & UNITS:  # the oldest entry is not enough
            return None
        return self._refusal(name, shape, left, reset, (freed - now) / SECOND)

    def _refusal(self, name: str, shape: Shape, left: int, reset_us: int, wait: float) -> Verdict:
        reset = reset_us / SECOND
        state = _new(LimitState, (name, shape.limit, shape.period, False, left, reset, wait))
        return _new(Verdict, (False, wait, (state,), 0.0, 0, 0, 0, None, 0.0, False))

    async def ask(self, question: Question) -> Verdict:
        return self.ask_nowait(question)

    def ask_nowait(self, question: Question) -> Verdict:
        """Decide one question without waiting for anything."""
        asks, horizon, gate, _, demand = question
        if len(asks) == 1 and not horizon and gate is None and not demand:
            return self.take_nowait(*asks[0])
        return self._decide(question)

    def _decide(self, question: Question) -> Verdict:
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
        return level_of(self._levels.held.get(key), now)

    def _keep_level(self, key: str, level: bucket.Level, now: int) -> None:
        self._levels.keep(key, kept_level(level))
        if now >= self._look_at:
            self._look(now)

    def _log(self, key: str, now: int) -> window.Log:
        return log_of(self._logs.held.get(key), now)

    def _keep_log(self, key: str, log: window.Log, shape: Window, now: int) -> None:
        self._logs.keep(key, kept_log(log, shape.period_us))
        if now >= self._look_at:
            self._look(now)

    def _look(self, now: int) -> None:
        """Drop a few states that have had their time; soon again, where there were many."""
        many = [shelf.look(now) for shelf in (self._levels, self._logs, self._gates)]
        self._look_at = now if any(many) else now + LOOK_EVERY_US

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
        if now >= self._look_at:
            self._look(now)

    async def lease(self, key: str, *, holder: str, limit: int, ttl: float) -> int:
        now = self._clock()
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

    async def forget(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.forget_nowait(key)

    def forget_nowait(self, key: str) -> None:
        """Forget one key without waiting for anything."""
        if key in self._levels.held:  # their places in the turn stay their own
            self._levels.held[key] = (0, 0)
        if key in self._logs.held:
            self._logs.held[key] = (0, window.EMPTY)
        if key in self._gates.held:
            self._gates.held[key] = (0, BreakerState())
        self._demand.pop(key, None)
        self._leases.pop(key, None)

    async def aclose(self) -> None:
        """Nothing to close: the state goes with the object."""

    def statistics(self) -> StoreStatistics:
        return StoreStatistics("memory", questions=self._questions, reports=self._reports)
