"""The published tables of other limiters, told to every store.

What their numbers mean is kept, none of their code. Where ours differs, the reason stands beside.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.limits.test_bucket_give_back import RESERVATIONS, VECTORS

from headworks.limits.shapes import Bucket, Shape, Window
from headworks.store.protocol import Ask, Correction, Question, Report, Store
from headworks.verdict import NEVER, Verdict

pytestmark = pytest.mark.real


async def take(store: Store, shape: Shape, cost: int = 1, horizon: float = 0.0) -> Verdict:
    return await store.ask(Question((Ask("limit", "{t}:k", shape, cost),), horizon))


async def left(store: Store, shape: Shape) -> int:
    return (await take(store, shape, 0)).limits[0].remaining


async def give_back(store: Store, shape: Shape, units: int, paid: Verdict) -> None:
    await store.report(Report((Correction("{t}:k", shape, -units, paid.at_us),)))


async def test_the_sixteen_steps_of_the_cell_rate_algorithm(opener: Any, clock: Any) -> None:
    """throttled and redis-cell: one a second, five at once."""
    start = clock.now
    async with opener(clock) as store:
        for step, (ms, cost, limited, remaining, reset, retry) in enumerate(VECTORS):
            clock.now = start + ms * 1000
            verdict = await take(store, Bucket.of(1, 1, burst=5), cost)
            state = verdict.limits[0]
            assert (verdict.allowed, state.remaining) == (not limited, remaining), step
            assert state.reset == pytest.approx(reset), step
            assert verdict.retry_after == {None: 0, -1: NEVER}.get(retry, retry), step


@pytest.mark.parametrize("case", RESERVATIONS)
async def test_reservations_and_cancellations(opener: Any, clock: Any, case: str) -> None:
    """x/time/rate."""
    (burst, script), start, granted = RESERVATIONS[case], clock.now, list[tuple[Verdict, int]]()
    shape = Bucket.of(10, 1, burst=burst)
    async with opener(clock) as store:
        for what, first, tenths, due in script:
            clock.now = start + tenths * 100_000
            if what == "take":
                verdict = await take(store, shape, first, horizon=10)
                assert verdict.wait == pytest.approx((due - tenths) / 10)
                granted.append((verdict, first))
            else:
                verdict, units = granted[first]
                await give_back(store, shape, units, verdict)


async def test_a_moving_window_by_its_statistics(opener: Any, clock: Any) -> None:
    """limits: five at once, five at the end of the period; when the first are gone, five more."""
    shape = Window.of(10, 2)
    async with opener(clock) as store:
        empty = (await take(store, shape, 0)).limits[0]
        assert (empty.remaining, empty.reset) == (10, 0)
        assert (await take(store, shape, 5)).allowed
        clock.pass_(1.9)
        assert all([(await take(store, shape)).allowed for _ in range(5)])
        assert not (await take(store, shape)).allowed
        clock.pass_(0.1)
        assert all([(await take(store, shape)).allowed for _ in range(5)])
        full = (await take(store, shape, 0)).limits[0]
        assert (full.remaining, full.reset) == (0, 2)


async def test_a_hundred_at_once_for_five_a_minute(opener: Any, clock: Any) -> None:
    """limits."""
    async with opener(clock) as store:
        verdicts = await asyncio.gather(*(take(store, Window.of(5, 60)) for _ in range(100)))
        assert sum(verdict.allowed for verdict in verdicts) == 5


@pytest.mark.parametrize("shape", [Bucket.of(2000, 1, burst=2000), Window.of(2000, 1)])
async def test_asking_for_more_than_there_is_takes_nothing(
    opener: Any, clock: Any, shape: Shape
) -> None:
    """gubernator: others may have the rest. Two a millisecond: it once divided to nothing there."""
    async with opener(clock) as store:
        for cost, allowed, remaining in [
            (1000, True, 1000),
            (1500, False, 1000),
            (500, True, 500),
            (400, True, 100),
            (100, True, 0),
            (1, False, 0),
        ]:
            verdict = await take(store, shape, cost)
            assert (verdict.allowed, verdict.limits[0].remaining) == (allowed, remaining)


# cost, passes, remaining, and the seconds until the next
LEAKY = [
    (1, True, 9, 1),
    (1, True, 8, 1),
    (1, True, 7, 1.5),
    (0, True, 8, 3),
    (0, True, 9, 0),
    (9, True, 0, 0),
    (1, False, 0, 3),
    (0, True, 1, 60),
    (0, True, 10, 60),
    (10, True, 0, 29),
    (9, True, 0, 3),
    (1, True, 0, 1),
]
LEAKY_WITH_BURST = [
    (1, True, 19, 1),
    (1, True, 18, 1),
    (1, True, 17, 1.5),
    (0, True, 18, 3),
    (0, True, 19, 0),
    (19, True, 0, 0),
    (1, False, 0, 3),
    (0, True, 1, 60),
    (0, True, 20, 1),
]


@pytest.mark.parametrize(("burst", "table"), [(10, LEAKY), (20, LEAKY_WITH_BURST)])
async def test_a_leaky_bucket_step_by_step(opener: Any, clock: Any, burst: int, table: Any) -> None:
    """gubernator: ten in thirty seconds."""
    async with opener(clock) as store:
        for step, (cost, allowed, remaining, seconds) in enumerate(table):
            verdict = await take(store, Bucket.of(10, 30, burst=burst), cost)
            assert (verdict.allowed, verdict.limits[0].remaining) == (allowed, remaining), step
            clock.pass_(seconds)


BOTH = [Window.of(10, 172_800), Bucket.of(10, 172_800, burst=10)]


@pytest.mark.parametrize("shape", BOTH)
async def test_refunds(opener: Any, clock: Any, shape: Shape) -> None:
    """upstash and gubernator: at the limit, over it, one after the other."""
    async with opener(clock) as store:
        paid = await take(store, shape, 10)
        assert not (await take(store, shape, 3)).allowed
        await give_back(store, shape, 3, paid)
        assert await left(store, shape) == 3
        await give_back(store, shape, 2, paid)
        assert await left(store, shape) == 5
        again = await take(store, shape, 5)
        assert (again.allowed, again.limits[0].remaining) == (True, 0)
        await give_back(store, shape, 1, again)
        assert await left(store, shape) == 1


@pytest.mark.parametrize("shape", BOTH)
async def test_a_refund_of_more_than_was_paid_makes_no_more_than_the_limit(
    opener: Any, clock: Any, shape: Shape
) -> None:
    """upstash lets a caller have a thousand of ten then; here a limit stays one (as bucket4j's does)."""
    async with opener(clock) as store:
        paid = await take(store, shape, 3)
        await give_back(store, shape, 1000, paid)
        assert await left(store, shape) <= 10
        assert not (await take(store, shape, 11)).allowed


async def test_what_is_drained_is_paid_before_anything_else(opener: Any, clock: Any) -> None:
    """gubernator's drain: work already done is charged although it does not fit."""
    shape = Bucket.of(10, 10, burst=10)
    async with opener(clock) as store:
        paid = await take(store, shape, 8)
        await store.report(Report((Correction("{t}:k", shape, 5, paid.at_us),)))
        refused = await take(store, shape)
        assert (refused.allowed, refused.limits[0].remaining) == (False, 0)
        assert refused.retry_after == pytest.approx(4)
        clock.pass_(4)
        assert (await take(store, shape)).allowed


async def test_a_reset_fills_it_and_a_changed_limit_keeps_what_was_spent(
    opener: Any, clock: Any
) -> None:
    """gubernator: a hundred, then ten, then a hundred again; and forgotten."""
    hundred, ten = Window.of(100, 60), Window.of(10, 60)
    async with opener(clock) as store:
        for shape, cost, remaining in [
            (hundred, 1, 99),
            (hundred, 1, 98),
            (ten, 1, 7),
            (hundred, 1, 96),
        ]:
            assert (await take(store, shape, cost)).limits[0].remaining == remaining
        await store.forget(["{t}:k"])
        assert await left(store, hundred) == 100
