"""What the store in memory answers in place, against the same question put the long way."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from headworks.limits.shapes import Bucket, Shape, Window
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Ask, Correction, Question, Report
from headworks.store.shelf import UNITS
from headworks.verdict import Verdict

SHAPES: dict[str, list[Shape]] = {
    "exact": [Window.of(10, 60), Window.of(6, 60)],
    "coarse": [Window.of(50, 60), Window(80, 60_000_000, 7_000_000), Window.of(100, 30)],
    "large": [Window.of(10 * UNITS, 60), Window.of(UNITS, 40 * 86_400)],
    "bucket": [Bucket.of(59, 60, burst=30), Bucket.of(7, 10, burst=9), Bucket.of(60, 60, burst=5)],
    "fine": [Bucket.of(10**7, 60, burst=500), Bucket.of(40_000_000, 60, burst=700)],
}
PAUSES = (0, 1, 1_000, 999_999, 3_000_000, 20_000_000, 61_000_000, 15 * 86_400_000_000)

steps = st.tuples(
    st.sampled_from(PAUSES) | st.integers(0, 90_000_000),
    st.sampled_from(sorted(SHAPES)),
    st.integers(0, 2),
    st.integers(0, 12) | st.sampled_from([30, 500, UNITS, UNITS + 1]),
    st.sampled_from(["take", "take", "take", "take", "book", "correct", "forget"]),
    st.integers(-12, 5),
)


class Clock:
    def __init__(self) -> None:
        self.now = 1_764_000_000_123_456

    def __call__(self) -> int:
        return self.now


def one(shape: Shape, cost: int = 1, key: str = "k") -> Question:
    return Question((Ask("limit", key, shape, cost),))


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=60))
def test_the_short_way_and_the_long_way_lead_to_the_same_verdict(history: list[Any]) -> None:
    """A question that reports demand goes the long way, through the functions of `limits`."""
    clock = Clock()
    short, long = MemoryStore(clock), MemoryStore(clock)
    paid: list[tuple[Ask, Verdict]] = []
    for pause, key, which, cost, what, units in history:
        clock.now += pause
        ask = Ask("limit", key, SHAPES[key][which % len(SHAPES[key])], cost)
        if what == "take":
            verdict = short.ask_nowait(Question((ask,)))
            told = long.ask_nowait(Question((ask,), pod="p", demand=1.0))
            assert told == verdict._replace(demand=told.demand)
            if verdict.allowed:
                paid.append((ask, verdict))
            continue
        for store in (short, long):
            if what == "book":
                store.ask_nowait(Question((ask,), horizon=30.0))
            elif what == "forget":
                store.forget_nowait(key)
            elif paid:
                back, before = paid[-1]
                change = Correction(back.key, back.shape, max(units, -back.cost), before.at_us)
                store.report_nowait(Report((change,)))


async def test_a_burst_beyond_what_an_entry_holds_is_still_counted_exactly() -> None:
    """Entries of a packed log hold 2²⁴ − 1 units; beyond that the log is kept unpacked."""
    clock = Clock()
    store, shape = MemoryStore(clock), Window.of(3 * UNITS, 60)
    for left in (2 * UNITS, UNITS, 0):
        assert (await store.ask(one(shape, UNITS))).limits[0].remaining == left
    assert (await store.ask(one(shape))).retry_after > 0
    clock.now += 61_000_000 + shape.grain_us
    assert (await store.ask(one(shape))).limits[0].remaining == shape.limit - 1


async def test_every_state_stays_small_in_memory() -> None:
    """Bytes per key after twenty hits spread over the period, the caller's own key not counted."""
    keys = [f"user:{number:027d}" for number in range(2_000)]
    for shape, most in ((Bucket.of(100, 60, burst=100), 200), (Window.of(100, 60), 450)):
        clock = Clock()
        store = MemoryStore(clock)
        gc.collect()
        tracemalloc.start()
        try:
            for _ in range(20):
                for key in keys:
                    assert store.ask_nowait(one(shape, key=key)).allowed
                clock.now += 2_900_000
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] / len(keys) <= most
        finally:
            tracemalloc.stop()
