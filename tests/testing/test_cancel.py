"""The harness finds what a missing `finally` leaves, and is silent about work that is clean."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import pytest

from headworks.cleanup import shielded
from headworks.testing.cancel import WAYS, NotClean, Way, cancel_at_every_await


class Slots:
    """A resource that can leak."""

    def __init__(self, free: int = 2) -> None:
        self.free = free

    @contextlib.asynccontextmanager
    async def clean(self) -> AsyncIterator[None]:
        self.free -= 1
        try:
            await asyncio.sleep(1)
            yield
            await asyncio.sleep(1)
        finally:
            self.free += 1

    @contextlib.asynccontextmanager
    async def leaky(self) -> AsyncIterator[None]:
        self.free -= 1
        await asyncio.sleep(1)
        yield
        await asyncio.sleep(1)
        self.free += 1


def test_clean_work_passes_at_each_of_its_suspensions() -> None:
    slots = Slots()

    async def scenario() -> None:
        async with slots.clean():
            await asyncio.sleep(0)

    assert cancel_at_every_await(scenario, snapshot=lambda: slots.free) == 3


def test_a_missing_finally_is_found_with_its_place() -> None:
    """The report says which suspension, in which way, where, and what was left."""

    async def scenario() -> None:
        async with slots.leaky():
            await asyncio.sleep(0)

    slots = Slots(100)
    with pytest.raises(NotClean) as caught:
        cancel_at_every_await(scenario, snapshot=lambda: slots.free)
    text = str(caught.value)
    assert "9 faults in 10 runs" in text
    assert "suspension 1, waiting: before: 100, after: 99" in text
    assert "test_cancel.py" in text
    assert "in scenario" in text


@contextlib.asynccontextmanager
async def fresh(make: Callable[[], None]) -> AsyncIterator[None]:
    make()
    yield


def test_a_grant_that_nobody_takes_is_found_only_when_woken() -> None:
    """The classic hand-over race: granted and cancelled in the same turn of the loop."""

    class Handing:
        """Hands a slot to a waiter by its future, and forgets a waiter cancelled after that."""

        def __init__(self) -> None:
            self.free = 1

        async def acquire(self) -> None:
            future = asyncio.get_running_loop().create_future()

            def grant() -> None:
                if not future.done():
                    self.free -= 1
                    future.set_result(None)

            asyncio.get_running_loop().call_later(1, grant)
            await future

    slots = Handing()

    def again() -> None:
        nonlocal slots
        slots = Handing()

    async def scenario() -> None:
        await slots.acquire()
        slots.free += 1

    def check(ways: tuple[Way, ...]) -> None:
        cancel_at_every_await(
            scenario, snapshot=lambda: slots.free, around=lambda: fresh(again), settle=5, ways=ways
        )

    check(("waiting", "scope"))
    with pytest.raises(NotClean, match="woken: before: 1, after: 0"):
        check(("woken",))


def test_cleanup_that_awaits_unshielded_is_found_only_by_a_scope() -> None:
    """anyio cancels again at the await in the finally; a task's own cancellation comes once."""
    slots = Slots(100)

    async def scenario(give_back: Callable[[], Awaitable[None]]) -> None:
        slots.free -= 1
        try:
            await asyncio.sleep(1)
        finally:
            await give_back()

    async def plainly() -> None:
        await asyncio.sleep(0.1)
        slots.free += 1

    async def safely() -> None:
        await shielded(plainly(), timeout=1)

    def check(give_back: Callable[[], Awaitable[None]], way: Way) -> None:
        ways: tuple[Way, ...] = (way,)
        cancel_at_every_await(lambda: scenario(give_back), snapshot=lambda: slots.free, ways=ways)

    for way in WAYS:
        check(safely, way)
    with pytest.raises(NotClean, match="suspension 1, scope"):
        check(plainly, "scope")


def test_a_task_left_behind_is_found() -> None:
    """It is named, with its coroutine."""
    kept: list[asyncio.Task[None]] = []

    async def scenario() -> None:
        child = asyncio.create_task(asyncio.sleep(500), name="orphan")
        kept.append(child)
        await asyncio.sleep(1)
        child.cancel()

    with pytest.raises(NotClean, match="suspension 1, waiting: left a task behind: orphan"):
        cancel_at_every_await(scenario, snapshot=lambda: None)


def test_a_swallowed_cancellation_is_found() -> None:
    async def scenario() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1)

    with pytest.raises(NotClean, match="suspension 1, waiting: swallowed its cancellation"):
        cancel_at_every_await(scenario, snapshot=lambda: None)


def test_an_error_in_place_of_the_cancellation_is_found() -> None:
    async def scenario() -> None:
        try:
            await asyncio.sleep(1)
        finally:
            if asyncio.get_running_loop().time() < 1001:
                raise KeyError("lost")

    with pytest.raises(NotClean, match="KeyError"):
        cancel_at_every_await(scenario, snapshot=lambda: None)


def test_work_that_never_ends_is_found() -> None:
    """Resisting for ever, or deadlocked without a timer."""

    async def scenario() -> None:
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            await asyncio.Event().wait()

    with pytest.raises(NotClean, match="did not end within 600 s"):
        cancel_at_every_await(scenario, snapshot=lambda: None, ways=("waiting",))


def test_a_scenario_that_leaks_uncancelled_is_said_so_first() -> None:
    slots = Slots()

    async def scenario() -> None:
        slots.free -= 1
        await asyncio.sleep(1)

    with pytest.raises(NotClean, match=r"1 faults in .*\nnot cancelled: before: 2, after: 1"):
        cancel_at_every_await(scenario, snapshot=lambda: slots.free)


def test_third_party_waiting_is_covered_too() -> None:
    """Task groups, locks and anyio's primitives count their suspensions like any other."""

    async def scenario() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 1)
            async with anyio.Lock():
                await anyio.sleep(0.5)
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(1))

    assert cancel_at_every_await(scenario, snapshot=lambda: None) >= 3
