"""Random histories, told to both stores and to a naive exact log."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headworks.limits.breaker import BreakerRules, Ending
from headworks.limits.shapes import Bucket, Shape, Window
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Ask, Correction, Gate, Question, Report, Store
from headworks.store.valkey import ValkeyStore
from headworks.verdict import Verdict

W = 60_000_000
GATE = Gate("g", BreakerRules(0.5, 4, 10_000_000, 3_000_000, 2, 1_000_000))
SHAPES: dict[str, list[Shape]] = {
    "exact": [Window.of(10, 60), Window.of(6, 60)],
    "coarse": [Window.of(50, 60), Window(80, W, 7_000_000)],
    "bucket": [Bucket.of(59, 60, burst=30), Bucket.of(7, 10, burst=9), Bucket.of(10**7, 60, burst=500)],
}

pauses = st.sampled_from([0, 1, 1_000, 999_999, 3_000_000, 20_000_000]) | st.integers(0, 90_000_000)
questions = st.tuples(
    st.just("ask"),
    st.lists(
        st.tuples(st.sampled_from(sorted(SHAPES)), st.integers(0, 2), st.integers(0, 12)),
        unique_by=lambda part: part[0],
        max_size=3,
    ),
    st.sampled_from([0.0, 0.0, 2.5, 70.0]),
    st.booleans(),
)
reports = st.tuples(
    st.just("report"),
    st.integers(0, 50),
    st.integers(-12, 5),
    st.sampled_from([None, *Ending]),
    st.booleans(),
)
histories = st.lists(st.tuples(pauses, questions | reports), max_size=40)


class Clock:
    def __init__(self) -> None:
        self.now = 1_764_000_000_123_456

    def __call__(self) -> int:
        return self.now


class ExactLog:
    """What was really spent, and when, by key; corrected as the stores were told."""

    def __init__(self) -> None:
        self.spent: dict[str, list[list[int]]] = {}

    def fits(self, ask: Ask, at: int, over: int) -> bool:
        """Whether a log over `over` would admit; what is booked for later counts."""
        counting = sum(units for t, units in self.spent.get(ask.key, []) if t > at - over)
        return counting + ask.cost <= ask.shape.limit

    def judge(self, question: Question, verdict: Verdict, now: int) -> None:
        """Hold one verdict on windows to both bounds."""
        windows = [a for a in question.asks if isinstance(a.shape, Window)]
        if verdict.allowed:
            for ask in windows:
                assert self.fits(ask, verdict.at_us, ask.shape.period_us)
        elif verdict.blocked is None and len(windows) == len(question.asks) and question.horizon == 0:
            assert not all(self.fits(a, now, a.shape.period_us + a.shape.grain_us) for a in windows)

    def take(self, question: Question, verdict: Verdict) -> None:
        for ask in question.asks:
            self.spent.setdefault(ask.key, []).append([verdict.at_us, ask.cost])

    def correct(self, ask: Ask, units: int, at: int) -> None:
        for entry in self.spent[ask.key]:
            if entry[0] == at and (units > 0 or entry[1]):
                entry[1] += units
                return


def _asks(parts: list[tuple[str, int, int]]) -> tuple[Ask, ...]:
    return tuple(
        Ask(key, key, SHAPES[key][which % len(SHAPES[key])], cost) for key, which, cost in parts
    )


async def _replay(stores: list[Store], history: list[Any], clock: Any) -> None:
    log, paid = ExactLog(), []
    start = clock.now
    for pause, (what, *rest) in history:
        clock.now += pause
        if what == "ask":
            parts, horizon, gated = rest
            question = Question(_asks(parts), horizon, GATE if gated else None, "pod", 1.5)
            verdict, *others = [await store.ask(question) for store in stores]
            assert others == [verdict] * len(others)
            log.judge(question, verdict, clock.now)
            if verdict.allowed:
                log.take(question, verdict)
                paid += [(ask, verdict) for ask in question.asks]
            continue
        which, units, ending, gated = rest
        corrections: tuple[Correction, ...] = ()
        epoch = probe = 0
        if paid:
            ask, verdict = paid[which % len(paid)]
            kept = sum(u for t, u in log.spent[ask.key] if t == verdict.at_us)
            units = max(units, -min(kept, ask.cost))
            corrections = (Correction(ask.key, ask.shape, units, verdict.at_us),)
            if any(t == verdict.at_us and (units > 0 or u + units >= 0) for t, u in log.spent[ask.key]):
                log.correct(ask, units, verdict.at_us)
            else:
                corrections = ()
            epoch, probe = verdict.epoch, verdict.probe
        report = Report(corrections, GATE if gated else None, ending, epoch=epoch, probe=probe)
        standing, *others = [await store.report(report) for store in stores]
        assert others == [standing] * len(others)
    assert clock.now >= start


@settings(max_examples=300, deadline=None)
@given(histories)
def test_memory_stays_between_the_exact_logs(history: list[Any]) -> None:
    clock = Clock()
    asyncio.run(_replay([MemoryStore(clock)], history, clock))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories)
def test_both_stores_answer_verdict_for_verdict_the_same(server: Any, history: list[Any]) -> None:
    async def replay() -> None:
        clock = Clock()
        server.client.flushall()
        valkey = ValkeyStore(server.url, clock=clock)
        try:
            await _replay([MemoryStore(clock), valkey], history, clock)
        finally:
            await valkey.aclose()
        for key in server.client.scan_iter():
            assert server.client.pttl(key) >= 1, "every key has a time to live"

    asyncio.run(replay())
