"""Virtual time: it jumps, it is exact, and it says so when it would wait for ever."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable

import anyio
import anyio.to_thread
import pytest

from headworks.testing import loop


async def test_an_hour_passes_at_once_and_exactly() -> None:
    """A sleep ends at the float it was asked for, not near it."""
    running = asyncio.get_running_loop()
    real = time.monotonic()
    for step in (3600.0, 0.1, 1e-6, 0.12):
        due = running.time() + step
        await asyncio.sleep(step)
        assert running.time() == due
    assert time.monotonic() - real < 60


def test_a_jump_lands_on_its_timer_where_adding_the_difference_would_not() -> None:
    """now + (due − now) can miss `due` by one rounding, as with these two numbers."""
    begin, due = 1 + 2**-50, 10 + 2**-49
    assert begin + (due - begin) != due

    async def main() -> float:
        fired = asyncio.Event()
        asyncio.get_running_loop().call_at(due, fired.set)
        await fired.wait()
        return asyncio.get_running_loop().time()

    assert loop.run(main(), start=begin) == due


async def test_timers_fire_in_order_whoever_set_them() -> None:
    """Sleeps and anyio's timeouts share one clock."""
    fired: list[str] = []

    async def after(seconds: float, name: str) -> None:
        await asyncio.sleep(seconds)
        fired.append(name)

    with anyio.move_on_after(2.5):
        await asyncio.gather(*(after(s, str(s)) for s in (3, 1, 2)))
    assert fired == ["1", "2"]


async def test_a_timeout_that_ends_with_its_work_lets_the_work_win() -> None:
    """Timers due at the same instant run in the order in which they were set."""
    async with asyncio.timeout(5):
        async with asyncio.timeout(5.000001):
            await asyncio.sleep(4.999999)
        assert asyncio.get_running_loop().time() == pytest.approx(1004.999999)


@pytest.mark.parametrize("start", [0.0, 1000.0, 1.7e9])
def test_sleeps_end_wherever_the_clock_stands(start: float) -> None:
    """Far from zero a nanosecond is lost in the float: timers then never came due, and the loop spun."""

    async def main() -> float:
        for _ in range(20):
            await asyncio.sleep(0.123)
        await asyncio.sleep(400 * 86400)
        await asyncio.sleep(0.1)
        return asyncio.get_running_loop().time()

    assert loop.run(main(), start=start) == pytest.approx(start + 20 * 0.123 + 400 * 86400 + 0.1)


def test_a_deadlock_is_named_instead_of_waited_for() -> None:
    """Nobody sets this event, and no timer is left."""

    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(loop.Stalled, match="deadlock"):
        loop.run(main())


async def test_other_threads_may_wake_a_loop_without_timers() -> None:
    """Work in a thread takes real time; with no timer set the loop waits for it."""
    assert await asyncio.to_thread(lambda: (time.sleep(0.05), "done")[1]) == "done"


@pytest.mark.parametrize("in_thread", [asyncio.to_thread, anyio.to_thread.run_sync])
async def test_the_clock_stands_still_while_a_thread_works(
    in_thread: Callable[[Callable[[], str]], Awaitable[str]],
) -> None:
    """A timeout of a millisecond does not strike while the thread takes fifty."""
    async with asyncio.timeout(0.001):
        assert await in_thread(lambda: (time.sleep(0.05), "done")[1]) == "done"
    assert asyncio.get_running_loop().time() == 1000


async def test_a_ready_socket_is_served_before_time_jumps() -> None:
    """What has already come over a socket is not overtaken by a timer."""
    left, right = socket.socketpair()
    with left, right:
        right.setblocking(False)
        left.send(b"x")
        async with asyncio.timeout(0.001):
            assert await asyncio.get_running_loop().sock_recv(right, 1) == b"x"


async def test_advance_moves_forward_only() -> None:
    """Moving by hand makes timers due; a negative step does nothing."""
    running = asyncio.get_running_loop()
    assert isinstance(running, loop.VirtualTimeLoop)
    timer = asyncio.create_task(asyncio.sleep(10))
    await asyncio.sleep(0)
    before = running.time()
    running.advance(-5)
    assert running.time() == before
    running.advance(10)
    for _ in range(4):
        await asyncio.sleep(0)
    assert timer.done()
    assert running.time() == before + 10


def test_a_loop_does_not_cost_the_processor_while_time_jumps() -> None:
    """A jump is one turn of the loop, not a spin: 1,000 sleeps take some thousand turns."""
    turns = 0

    class Counting(loop.VirtualTimeLoop):
        def _run_once(self) -> None:
            nonlocal turns
            turns += 1
            super()._run_once()  # type: ignore[misc]  # BaseEventLoop's, untyped

    async def main() -> None:
        for _ in range(1000):
            await asyncio.sleep(0.0123)

    with asyncio.Runner(loop_factory=Counting) as runner:
        runner.run(main())
    assert turns < 3100


def test_a_thread_that_ends_between_two_looks_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has left its word when it is found to be gone: that is no deadlock."""

    async def main() -> None:
        running, heard = asyncio.get_running_loop(), asyncio.Event()

        def ended() -> int:
            running.call_soon_threadsafe(heard.set)
            return 1

        monkeypatch.setattr(loop.threading, "active_count", ended)
        await heard.wait()

    loop.run(main())
