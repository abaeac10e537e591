"""Random histories, told to the stores and to a naive exact log: ten thousand to memory alone, and ten
thousand to memory and to one of three kinds of servers, in every run.

A history is read from bytes: drawing bytes costs next to nothing, and they shrink to short histories
of small numbers.
"""

from __future__ import annotations

import asyncio
import math
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.store.conftest import BACKENDS

from headworks.limits.breaker import BreakerRules, Ending
from headworks.limits.shapes import Bucket, Shape, Window
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Ask, Correction, Gate, Question, Report, Store
from headworks.store.valkey import ValkeyStore
from headworks.verdict import Verdict

IN_MEMORY, ON_A_SERVER = 10_000, 3_400
"""Histories told to each."""

W = 60_000_000
RULES = BreakerRules(0.5, 4, 10_000_000, 3_000_000, 2, 1_000_000)
SHAPES: tuple[tuple[str, tuple[Shape, ...]], ...] = (
    ("exact", (Window.of(10, 60), Window.of(6, 60))),
    ("coarse", (Window.of(50, 60), Window(80, W, 7_000_000))),
    (
        "bucket",
        (Bucket.of(59, 60, burst=30), Bucket.of(7, 10, burst=9), Bucket.of(10**7, 60, burst=500)),
    ),
    ("steady", (Bucket.of(59, 60, burst=7),)),
)
PAUSES = (0, 1, 1_000, 999_999, 3_000_000, 20_000_000, 61_000_000)
HORIZONS = (0.0, 0.0, 2.5, 70.0)
ENDINGS = (None, *Ending)


class Clock:
    def __init__(self) -> None:
        self.now = 1_764_000_000_123_456

    def __call__(self) -> int:
        return self.now


class Choices:
    """Small numbers from bytes; zeros when there are no more."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def below(self, bound: int) -> int:
        self._at += 1
        return self._data[self._at - 1] % bound if self._at <= len(self._data) else 0

    def pause(self) -> int:
        """Microseconds to let pass: often a round number, else anything up to 90 s."""
        which = self.below(len(PAUSES) + 3)
        if which < len(PAUSES):
            return PAUSES[which]
        return (self.below(256) << 16 | self.below(256) << 8 | self.below(256)) * 90_000_000 >> 24


class ExactLog:
    """What was really spent, and when, by key; corrected as the stores were told."""

    def __init__(self) -> None:
        self.spent: dict[str, list[list[int]]] = {}
        self.tat: dict[str, Fraction] = {}
        self.corrected: set[str] = set()
        self.charged: set[str] = set()

    def fits(self, ask: Ask, at: int, over: int) -> bool:
        """Whether a log over `over` would admit; what is booked for later counts."""
        counting = sum(units for t, units in self.spent.get(ask.key, ()) if t > at - over)
        return counting + ask.cost <= ask.shape.limit

    def judge(self, question: Question, verdict: Verdict, now: int) -> None:
        """Hold a verdict to both bounds: an exact log over W, and one over W + one sub-bucket; for a
        bucket of one rate, to the very microsecond."""
        soonest = now
        for ask in question.asks:
            if isinstance(ask.shape, Window):
                if verdict.allowed:
                    assert self.fits(ask, verdict.at_us, ask.shape.period_us)
            elif ask.key == "steady" and ask.key not in self.corrected:
                soonest = max(soonest, self.earliest(ask, now))
                assert not verdict.allowed or verdict.at_us >= soonest
        windows = [ask for ask in question.asks if isinstance(ask.shape, Window)]
        if verdict.allowed or verdict.blocked is not None or verdict.retry_after == math.inf:
            return
        if len(windows) == len(question.asks) and question.horizon == 0:
            assert not all(self.fits(a, now, W + _grain(a)) for a in windows)
        if [ask.key for ask in question.asks] == ["steady"] and "steady" not in self.corrected:
            assert now + round((verdict.retry_after + question.horizon) * 1e6) == soonest

    def earliest(self, ask: Ask, now: int) -> int:
        """When the cost fits into a bucket in exact fractions."""
        assert isinstance(ask.shape, Bucket)
        tat = max(self.tat.get(ask.key, Fraction(0)), Fraction(now))
        return max(now, math.ceil(tat - (ask.shape.burst - ask.cost) * _pace(ask.shape)))

    def take(self, question: Question, verdict: Verdict) -> None:
        for ask in question.asks:
            self.spent.setdefault(ask.key, []).append([verdict.at_us, ask.cost])
            if ask.key == "steady" and ask.cost:  # a peek that rides on a later booking moves nothing
                tat = max(self.tat.get(ask.key, Fraction(0)), Fraction(verdict.at_us))
                self.tat[ask.key] = tat + ask.cost * _pace(ask.shape)

    def correct(self, ask: Ask, units: int, at: int) -> bool:
        """Whether one spending of that time could carry the correction, and then did."""
        for entry in self.spent[ask.key]:
            if entry[0] == at and entry[1] + units >= 0:
                entry[1] += units
                self.corrected.add(ask.key)
                if units > 0:
                    self.charged.add(ask.key)
                return True
        return False

    def check_buckets(self) -> None:
        """No stretch of time saw more than what its length and a burst allow, whatever was given back
        and however the limit changed; unless somebody was charged on top, which may pass the limit."""
        for key, shapes in SHAPES:
            if not isinstance(shapes[0], Bucket) or key in self.charged:
                continue
            rate = max(1 / _pace(shape) for shape in shapes)
            ahead = max(shape.burst * _pace(shape) for shape in shapes if isinstance(shape, Bucket))
            spent = sorted(self.spent.get(key, ()))
            for i, (start, _) in enumerate(spent):
                units = 0
                for at, cost in spent[i:]:
                    units += cost
                    assert units <= (at - start + ahead + 1) * rate, key


def _pace(shape: Shape) -> Fraction:
    return Fraction(shape.period_us, shape.limit)


def _grain(ask: Ask) -> int:
    """The coarsest sub-bucket among the limits that share the key."""
    shapes = dict(SHAPES)[ask.key]
    return max(shape.grain_us for shape in shapes if isinstance(shape, Window))


class History:
    """One history under way: every store hears the same, and must say the same."""

    def __init__(self, stores: list[Store], clock: Clock, prefix: str) -> None:
        self.stores, self.clock, self.prefix = stores, clock, prefix
        self.gate = Gate(f"{prefix}gate", RULES)
        self.log = ExactLog()
        self.paid: list[tuple[Ask, Verdict]] = []

    def question(self, choose: Choices) -> Question:
        chosen, asks = choose.below(16), []
        for bit, (key, shapes) in enumerate(SHAPES):
            if chosen >> bit & 1:
                asks.append(Ask(key, key, shapes[choose.below(len(shapes))], choose.below(13)))
        horizon = HORIZONS[choose.below(len(HORIZONS))]
        return Question(tuple(asks), horizon, self.gate if choose.below(4) == 3 else None, "pod", 1.5)

    async def ask(self, question: Question) -> Verdict:
        told = Question(
            tuple(Ask(a.name, self.prefix + a.key, a.shape, a.cost) for a in question.asks),
            question.horizon,
            question.gate,
            question.pod,
            question.demand,
        )
        verdict, *others = [await store.ask(told) for store in self.stores]
        assert others == [verdict] * len(others)
        self.log.judge(question, verdict, self.clock.now)
        if verdict.allowed:
            self.log.take(question, verdict)
            self.paid += [(ask, verdict) for ask in question.asks]
        return verdict

    async def insist(self, question: Question) -> None:
        """Come back when told, and just before: `retry_after` is exact."""
        refused = await self.ask(question)
        if refused.allowed or refused.blocked is not None or refused.retry_after == math.inf:
            return
        after = round(refused.retry_after * 1_000_000)
        assert after >= 1
        early = min(after, 1_000)
        self.clock.now += after - early
        if early < after:
            assert not (await self.ask(question)).allowed
        self.clock.now += early
        assert (await self.ask(question)).allowed

    async def report(self, choose: Choices) -> None:
        which, units = choose.below(50), choose.below(18) - 12
        ending, gated = ENDINGS[choose.below(len(ENDINGS))], choose.below(2) == 1
        corrections: tuple[Correction, ...] = ()
        epoch = probe = 0
        if self.paid:
            ask, verdict = self.paid[-1 - which % len(self.paid)]
            epoch, probe = verdict.epoch, verdict.probe
            if self.log.correct(ask, units, verdict.at_us):
                corrections = (Correction(self.prefix + ask.key, ask.shape, units, verdict.at_us),)
        report = Report(corrections, self.gate if gated else None, ending, epoch=epoch, probe=probe)
        standing, *others = [await store.report(report) for store in self.stores]
        assert others == [standing] * len(others)


async def _replay(stores: list[Store], data: bytes, clock: Clock, prefix: str) -> None:
    choose, history = Choices(data), History(stores, clock, prefix)
    while choose:
        clock.now += choose.pause()
        what = choose.below(4)
        if what == 3:
            await history.report(choose)
        elif what == 2:
            await history.insist(history.question(choose))
        else:
            await history.ask(history.question(choose))
    history.log.check_buckets()


histories = st.binary(max_size=40) | st.binary(min_size=60, max_size=240)


@settings(max_examples=IN_MEMORY)
@given(histories)
def test_memory_stays_between_the_exact_logs(data: bytes) -> None:
    clock = Clock()
    replay = _replay([MemoryStore(clock)], data, clock, "")
    try:
        replay.send(None)
    except StopIteration:
        return
    raise AssertionError("the store in memory waits for nothing")


@pytest.mark.real
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_server_answers_verdict_for_verdict_like_memory(
    request: pytest.FixtureRequest, backend: str
) -> None:
    server = request.getfixturevalue(BACKENDS[backend])
    with asyncio.Runner() as runner:
        clock = Clock()
        shared = ValkeyStore(server.url, clock=clock)
        told = 0

        @settings(
            max_examples=ON_A_SERVER,
            suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        )
        @given(histories)
        def replay(data: bytes) -> None:
            nonlocal told
            told += 1
            runner.run(_replay([MemoryStore(clock), shared], data, clock, f"{{{told}}}"))

        try:
            replay()
            for node in getattr(server, "nodes", [server]):
                keys = list(node.client.scan_iter())
                assert keys
                assert all(node.client.pttl(key) != -1 for key in keys), "every key has a time to live"
        finally:
            runner.run(shared.aclose())
