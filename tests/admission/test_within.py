"""A bound whose timer is set only where something waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from headworks.admission.within import within


async def bounded(seconds: float, work: Awaitable[None]) -> None:
    """Await `work` as `Answer.send` does."""
    steps = work.__await__()
    try:
        waits_for = next(steps)
    except StopIteration:
        return
    await within(seconds, steps, waits_for)


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_work_that_waits_too_long_is_cancelled_and_cleans_up() -> None:
    """The cancellation reaches it, its own awaits while cleaning up included."""
    log: list[str] = []

    async def work() -> None:
        await asyncio.sleep(1)
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            await asyncio.sleep(2)
            log.append("cleaned up")
            raise

    with pytest.raises(TimeoutError):
        await bounded(5.0, work())
    assert (log, now()) == (["cleaned up"], 1007.0)


async def test_work_in_time_is_left_alone_however_often_it_waits() -> None:
    async def work() -> None:
        for _ in range(4):
            await asyncio.sleep(1)

    await bounded(5.0, work())
    assert now() == 1004.0


@pytest.mark.parametrize("waits", [0, 1])
async def test_what_the_work_raises_is_raised(waits: int) -> None:
    async def work() -> None:
        for _ in range(waits):
            await asyncio.sleep(1)
        raise ValueError("theirs")

    with pytest.raises(ValueError, match="theirs"):
        await bounded(5.0, work())


async def test_a_cancellation_from_outside_reaches_the_work_and_stays_one() -> None:
    log: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            log.append("cleaned up")

    async def answer() -> None:
        await bounded(5.0, work())

    task = asyncio.create_task(answer())
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (log, now()) == (["cleaned up"], 1001.0)
