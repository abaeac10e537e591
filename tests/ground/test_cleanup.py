"""Cleanup: bounded in time and number, whatever the work and its caller go through."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
from collections.abc import Awaitable, Callable

import anyio
import pytest

from headworks import current
from headworks.cleanup import GRACE, Reaper, shielded

Caplog = pytest.LogCaptureFixture


def now() -> float:
    return asyncio.get_running_loop().time()


async def work(seconds: float, done: list[str] | None = None) -> str:
    await asyncio.sleep(seconds)
    if done is not None:
        done.append("done")
    return "result"


async def stubborn(seconds: float) -> str:
    """Takes its time, whoever cancels it."""
    ends = now() + seconds
    while now() < ends:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(ends - now())
    return "late"


# shielded


async def test_shielded_returns_what_the_work_returns() -> None:
    assert await shielded(work(1), timeout=2) == "result"


async def test_shielded_raises_what_the_work_raises() -> None:
    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await shielded(fail(), timeout=2)


async def test_shielded_ends_at_its_timeout() -> None:
    begun, done = now(), list[str]()
    with pytest.raises(TimeoutError, match="longer than 2 s"):
        await shielded(work(5, done), timeout=2)
    assert now() - begun == 2
    await asyncio.sleep(10)
    assert not done


async def test_shielded_with_no_time_left_does_not_begin() -> None:
    done: list[str] = []
    with pytest.raises(TimeoutError):
        await shielded(work(0, done), timeout=0)
    assert not done


@pytest.mark.parametrize("cancels", [1, 2, 3])
async def test_the_work_is_finished_before_a_cancellation_is_delivered(cancels: int) -> None:
    """Once or several times: the caller is cancelled only after the work is done."""
    done: list[str] = []
    task = asyncio.create_task(shielded(work(2, done), timeout=5))
    for _ in range(cancels):
        await asyncio.sleep(0.5)
        task.cancel()
    begun = now()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["done"]
    assert now() - begun == pytest.approx(2 - cancels * 0.5)


async def test_a_cancelled_caller_is_held_no_longer_than_the_timeout(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The cancellation still comes, and the loss of the cleanup is told."""
    task = asyncio.create_task(shielded(work(100), timeout=2))
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert now() == 1002
    assert "longer than 2 s" in caplog.text


async def test_a_timeout_around_shielded_strikes_after_the_work() -> None:
    done: list[str] = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await shielded(work(2, done), timeout=5)
    assert done == ["done"]
    assert now() == 1002


async def test_a_cancelled_anyio_scope_neither_cuts_the_work_off_nor_spins() -> None:
    """anyio cancels again at every turn of the loop; the shield keeps the turns few."""
    done: list[str] = []
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.1)

    counter = asyncio.create_task(count())
    steps = 0
    running = asyncio.get_running_loop()
    original = running.call_soon

    def counted(*args: object, **kwargs: object) -> asyncio.Handle:
        nonlocal steps
        steps += 1
        return original(*args, **kwargs)  # type: ignore[arg-type]  # passed through

    running.call_soon = counted  # type: ignore[method-assign,assignment]  # only to count
    with anyio.CancelScope() as scope:
        running.call_later(0.5, scope.cancel)
        await shielded(work(3, done), timeout=5)
        await asyncio.sleep(0)
        pytest.fail("the cancellation must arrive at the next await")
    assert scope.cancelled_caught
    assert done == ["done"]
    assert now() == 1003
    assert turns == pytest.approx(30, abs=2)
    assert steps < 200
    counter.cancel()


async def test_shielded_inside_a_scope_that_is_already_cancelled_still_runs() -> None:
    """The usual case: cleanup in a finally, after the disconnect."""
    done: list[str] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await asyncio.sleep(1)
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await shielded(work(2, done), timeout=5)
    assert done == ["done"]


async def test_work_that_resists_is_let_go_after_a_grace() -> None:
    begun = now()
    with pytest.raises(TimeoutError):
        await shielded(stubborn(60), timeout=2)
    assert now() - begun == pytest.approx(2 + GRACE)
    await asyncio.sleep(100)


async def test_work_cancelled_by_another_hand_is_not_called_slow() -> None:
    """Its CancelledError comes through as what it is."""

    async def cancelled_inside() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await shielded(cancelled_inside(), timeout=5)


async def test_a_failure_is_logged_when_its_caller_was_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        await asyncio.sleep(1)
        raise KeyError("lost lease")

    task = asyncio.create_task(shielded(fail(), timeout=5))
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "lost lease" in caplog.text


# Reaper


def release(log: list[int], number: int, seconds: float = 0.0) -> Callable[[], Awaitable[object]]:
    async def do() -> None:
        await asyncio.sleep(seconds)
        log.append(number)

    return do


async def test_releases_run_side_by_side_and_drain_waits_for_them() -> None:
    reaper, log = Reaper(), list[int]()
    for number in range(10):
        reaper.hand_over("x", release(log, number, 1.0))
    await reaper.drain(5)
    assert sorted(log) == list(range(10))
    assert now() == 1001
    assert reaper.statistics().done == 10
    assert reaper.statistics().running == reaper.statistics().waiting == 0


async def test_no_more_than_a_batch_runs_at_once() -> None:
    running = highest = 0

    async def do() -> None:
        nonlocal running, highest
        running += 1
        highest = max(highest, running)
        await asyncio.sleep(1)
        running -= 1

    reaper = Reaper(batch=4)
    for _ in range(12):
        reaper.hand_over("x", do)
    await reaper.drain(10)
    assert highest == 4
    assert now() == 1003


async def test_one_slow_release_does_not_hold_up_the_others() -> None:
    """Nine more pass by the one that uses its whole deadline."""
    reaper, log = Reaper(batch=2, deadline=100), list[int]()
    reaper.hand_over("slow", release(log, 0, 50))
    for number in range(1, 10):
        reaper.hand_over("x", release(log, number, 1))
    await asyncio.sleep(10)
    assert log == list(range(1, 10))
    await reaper.drain(100)
    assert log[-1] == 0


async def test_beyond_capacity_the_oldest_is_dropped() -> None:
    reaper, log = Reaper(capacity=3, batch=1), list[int]()
    for number in range(5):
        reaper.hand_over("x", release(log, number))
    await reaper.drain(5)
    assert log == [2, 3, 4]
    assert reaper.statistics().dropped == 2


async def test_a_release_has_a_deadline(caplog: Caplog) -> None:
    reaper, log = Reaper(deadline=2, batch=1), list[int]()
    reaper.hand_over("the slow one", release(log, 0, 100))
    reaper.hand_over("x", release(log, 1))
    await reaper.drain(10)
    assert log == [1]
    assert now() == 1002
    assert reaper.statistics().failed == 1
    assert "the slow one" in caplog.text


async def test_a_release_that_resists_its_deadline_does_not_hold_up_the_rest() -> None:
    reaper, log = Reaper(deadline=2, batch=1), list[int]()
    reaper.hand_over("stubborn", lambda: stubborn(50))
    reaper.hand_over("x", release(log, 1))
    await reaper.drain(10)
    assert log == [1]
    assert now() == pytest.approx(1002 + GRACE)
    await asyncio.sleep(100)


@pytest.mark.parametrize("error", [KeyError("boom"), asyncio.CancelledError()])
async def test_a_release_that_fails_is_counted_and_the_next_one_runs(error: BaseException) -> None:
    """A release that raises CancelledError must not take the reaper with it."""

    async def fail() -> None:
        raise error

    def fail_at_once() -> Awaitable[object]:
        raise error

    reaper, log = Reaper(batch=1), list[int]()
    reaper.hand_over("x", fail)
    reaper.hand_over("x", fail_at_once)
    reaper.hand_over("x", release(log, 1))
    await reaper.drain(5)
    assert log == [1]
    assert reaper.statistics().failed == 2


async def test_what_is_handed_over_during_a_drain_is_drained_too() -> None:
    """Also at the very moment at which the reaper has run out of work."""
    reaper, log = Reaper(), list[int]()

    async def chain() -> None:
        await asyncio.sleep(1)
        reaper.hand_over("x", release(log, 1, 1))

    reaper.hand_over("x", chain)
    await reaper.drain(10)
    assert log == [1]


@pytest.mark.parametrize("turns", range(12))
async def test_a_release_handed_over_in_any_turn_of_the_loop_is_run(turns: int) -> None:
    """A worker that has just ended must not be counted on."""
    reaper, log = Reaper(batch=1), list[int]()
    reaper.hand_over("x", release(log, 1))
    for _ in range(turns):
        await asyncio.sleep(0)
    reaper.hand_over("x", release(log, 2))
    await asyncio.sleep(1)
    assert log == [1, 2]


async def test_a_drain_that_runs_out_of_time_drops_the_rest_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reaper, log = Reaper(deadline=100, batch=2), list[int]()
    for number in range(5):
        reaper.hand_over("x", release(log, number, 50))
    with caplog.at_level(logging.WARNING):
        await reaper.drain(10)
    assert now() == 1010
    assert log == []
    assert "5 releases were not done within 10 s" in caplog.text
    stats = reaper.statistics()
    assert (stats.waiting, stats.running, stats.dropped) == (0, 0, 5)


async def test_an_idle_drain_returns_at_once() -> None:
    await Reaper().drain(10)
    assert now() == 1000


def test_a_loop_that_ends_before_a_release_does_leaves_in_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is collected outside of any loop has nobody left who could hear an error."""
    gc.collect()  # nobody else's leavings
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    loop = asyncio.new_event_loop()

    async def hands_over() -> None:
        reaper = Reaper()
        # The loop ends between two steps of the worker.
        reaper.hand_over("x", asyncio.Event().wait)
        await asyncio.sleep(0)

    loop.run_until_complete(hands_over())
    loop.close()
    del loop
    gc.collect()
    assert unraisable == []


async def test_a_cancelled_drain_leaves_the_releases_running() -> None:
    reaper, log = Reaper(), list[int]()
    reaper.hand_over("x", release(log, 1, 1.5))
    draining = asyncio.create_task(reaper.drain(10))
    await asyncio.sleep(1)
    draining.cancel()
    await asyncio.sleep(2)
    assert log == [1]
    assert draining.cancelled()


async def test_releases_do_not_see_the_request_that_handed_them_over() -> None:
    """Its deadline is over by the time they run."""
    seen: list[float] = []

    async def look() -> None:
        seen.append(current.current().deadline)

    token = current.enter(current.Current(deadline=5.0))
    reaper = Reaper()
    reaper.hand_over("x", look)
    current.leave(token)
    await reaper.drain(1)
    assert seen == [float("inf")]
