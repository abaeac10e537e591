"""Cancel a piece of work at every one of its awaits, and see whether it gave everything back.

`cancel_at_every_await` runs a scenario once, counting its suspensions (the times it yields to the
event loop), and then again for every suspension and every way of being cancelled there:

    waiting  `Task.cancel` while what it waits for has not come
    woken    `Task.cancel` after what it waits for has come, before the task could run: the slot has
             been granted, yet nobody will take it
    scope    an anyio cancel scope, as Starlette's on disconnect: delivered again at every await that
             is not shielded, clean-up included

Each run has a virtual-time loop of its own. Compared with the moment before the scenario: the
caller's snapshot, and the tasks alive. A scenario that swallows its cancellation, raises something
else, or does not end is reported too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import anyio

from headworks.testing import loop

Way = Literal["waiting", "woken", "scope"]
WAYS: tuple[Way, ...] = ("waiting", "woken", "scope")


class NotClean(AssertionError):
    """Work that was cancelled left something behind. The message lists every place and what."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where and how one run is cancelled; suspension 0 is none."""

    suspension: int = 0
    way: Way = "waiting"


class _Watched:
    """Awaits the scenario, counts its suspensions and strikes at the planned one."""

    def __init__(self, work: Awaitable[object], plan: _Plan) -> None:
        self._work, self._plan = work, plan
        self.suspensions = 0
        self.place = ""
        self.scope: anyio.CancelScope | None = None

    def __await__(self) -> Generator[Any, Any, object]:
        inner: Any = self._work.__await__()
        error: BaseException | None = None
        while True:
            try:
                yielded = inner.send(None) if error is None else inner.throw(error)
            except StopIteration as stop:
                return stop.value
            self.suspensions += 1
            if self.suspensions == self._plan.suspension:
                self.place = _place(self._work)
                self._strike(yielded)
            try:
                error = None
                yield yielded
            except GeneratorExit:
                inner.close()
                raise
            except BaseException as thrown:
                error = thrown

    def _strike(self, awaited: object) -> None:
        task = asyncio.current_task()
        assert task is not None, "the scenario runs in a task"
        if self._plan.way == "scope":
            assert self.scope is not None
            asyncio.get_running_loop().call_soon(self.scope.cancel)
        elif self._plan.way == "woken" and isinstance(awaited, asyncio.Future):
            awaited.add_done_callback(lambda _: task.cancel())  # runs before the task's own wake-up
        else:
            asyncio.get_running_loop().call_soon(task.cancel)


def _place(work: object) -> str:
    """Where a suspended awaitable stands, innermost first: `file:line in function ← …`."""
    frames: list[FrameType] = []
    while work is not None:
        frame = getattr(work, "cr_frame", None) or getattr(work, "gi_frame", None)
        frame = frame or getattr(work, "ag_frame", None)
        if frame is not None:
            frames.append(frame)
        waits_for = getattr(work, "cr_await", None) or getattr(work, "gi_yieldfrom", None)
        work = waits_for or getattr(work, "ag_await", None)
    stdlib = os.path.dirname(asyncio.__file__)
    own = [frame for frame in frames if not frame.f_code.co_filename.startswith(stdlib)] or frames
    return " ← ".join(
        f"{os.path.relpath(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}"
        for frame in reversed(own)
    )


def cancel_at_every_await(
    scenario: Callable[[], Awaitable[object]],
    *,
    snapshot: Callable[[], object],
    around: Callable[[], contextlib.AbstractAsyncContextManager[object]] | None = None,
    settle: float = 1.0,
    timeout: float = 600.0,
    ways: tuple[Way, ...] = WAYS,
) -> int:
    """Run `scenario` once per suspension and way of cancelling it; returns the suspensions counted.

    scenario  a function that returns a fresh awaitable each time; must run the same way each time
    snapshot  a value that is equal before and after when everything has been given back: free slots,
              open streams, leases
    around    an async context, entered before each run and left after its check, never cancelled:
              builds the world that scenario and snapshot use, and takes it down. Tasks alive when it
              has been entered may stay
    settle    virtual seconds after the run that background clean-up may take, default 1
    timeout   virtual seconds after which a run counts as never ending, default 600

    Raises `NotClean` with every suspension that left something and what it left. The scenario must
    also be clean when nobody cancels it. Call it outside of any running loop.
    """
    faults: list[str] = []

    def attempt(plan: _Plan) -> int:
        found: list[str] = []
        main = _run(scenario, snapshot, around or contextlib.nullcontext, plan, settle, timeout, found)
        try:
            suspensions, place = loop.run(main)
        except loop.Stalled as stalled:
            suspensions, place = plan.suspension, ""
            found.append(str(stalled))
        for fault in found:
            where = f"suspension {plan.suspension}, {plan.way}" if plan.suspension else "not cancelled"
            faults.append(f"{where}: {fault}" + (f"\n    at {place}" if place else ""))
        return suspensions

    total = attempt(_Plan())
    if not faults:
        for suspension in range(1, total + 1):
            for way in ways:
                attempt(_Plan(suspension, way))
    if faults:
        raise NotClean("\n".join([f"{len(faults)} faults in {1 + total * len(ways)} runs", *faults]))
    return total


async def _run(
    scenario: Callable[[], Awaitable[object]],
    snapshot: Callable[[], object],
    around: Callable[[], contextlib.AbstractAsyncContextManager[object]],
    plan: _Plan,
    settle: float,
    timeout: float,
    found: list[str],
) -> tuple[int, str]:
    """One run; appends what was wrong to `found`. Returns its suspensions and where it was struck."""
    async with around():
        before, tasks_before = snapshot(), asyncio.all_tasks()
        watched = _Watched(scenario(), plan)
        task = asyncio.create_task(_scoped(watched), name="scenario")
        await asyncio.wait((task,), timeout=timeout)
        found.extend(_ending(task, watched, plan, timeout))
        await asyncio.sleep(settle)
        after = snapshot()
        if after != before:
            found.append(f"before: {before!r}, after: {after!r}")
        left = asyncio.all_tasks() - tasks_before - {task}
        found.extend(f"left a task behind: {other.get_name()}, {other.get_coro()!r}" for other in left)
        return watched.suspensions, watched.place


async def _scoped(watched: _Watched) -> bool:
    """Await the scenario in a cancel scope; True when the scope cancelled it."""
    with anyio.CancelScope() as scope:
        watched.scope = scope
        await watched
    return scope.cancelled_caught


def _ending(task: asyncio.Task[bool], watched: _Watched, plan: _Plan, timeout: float) -> list[str]:
    """What is wrong with the way a run ended."""
    if not task.done():
        return [f"did not end within {timeout:g} s"]
    if not task.cancelled() and task.exception() is not None:
        return [f"raised {task.exception()!r}"]
    if plan.suspension and watched.suspensions < plan.suspension:
        return [f"ended after {watched.suspensions} suspensions: it does not run the same way each time"]
    struck = task.cancelled() or task.result()
    if struck and not plan.suspension:
        return ["was cancelled, though nobody did"]
    if plan.suspension and not struck and plan.way != "scope":  # a scope waits for the next await
        return ["swallowed its cancellation"]
    return []
