"""The only place that shields, and the only owner of work nobody waits for.

Local releases are synchronous and need nothing from here. Remote releases go to the `Reaper`;
whoever must know that one has happened uses `shielded`, which is bounded in time. Allowed in both:
metrics, traces, releases, final state. Never: retries, vendor calls, heavy or unbounded work.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio

T = TypeVar("T")
log = logging.getLogger("headworks")

Release = Callable[[], Awaitable[object]]

GRACE = 0.1
"""Seconds given to work that ran out of time to end by itself once it is cancelled."""


async def shielded(work: Coroutine[Any, Any, T], *, timeout: float) -> T:
    """Finish `work` even if the caller is cancelled meanwhile, but spend at most `timeout` seconds.

    A cancellation that arrives is delivered after the work has ended. Raises `TimeoutError` when the
    time is up (the work is then cancelled), and whatever the work raises.

    Both kinds of cancellation are met: a task's own (`Task.cancel`), delivered once, and anyio's
    (Starlette's on disconnect), delivered again at every await unless the scope is shielded.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work, name="shielded")
    ends = loop.time() + timeout
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            left = ends - loop.time()
            if left <= -GRACE:  # it resists its cancellation: leave it to the loop, stay bounded
                break
            if left <= 0:
                task.cancel()
            try:
                await asyncio.wait((task,), timeout=left if left > 0 else left + GRACE)
            except asyncio.CancelledError as error:
                cancelled = error
    late = not task.done() or (task.cancelled() and loop.time() >= ends)
    if not task.done():
        _abandon(task)
    if cancelled is not None:
        if late:
            log.error("cleanup took longer than %g s while its caller was cancelled", timeout)
        elif not task.cancelled() and task.exception() is not None:
            log.error("cleanup failed while its caller was cancelled", exc_info=task.exception())
        raise cancelled
    if late:
        raise TimeoutError(f"cleanup took longer than {timeout:g} s")
    return task.result()


def _abandon(task: asyncio.Task[Any]) -> None:
    """Let go of a task that resists its cancellation; if it fails in the end, that is logged."""

    def ended(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("cleanup that had run out of time failed", exc_info=task.exception())

    task.add_done_callback(ended)


@dataclass(frozen=True, slots=True)
class ReaperStatistics:
    """waiting: handed over, not begun · running: begun, not ended · since the start: done, failed
    (raised or timed out), dropped (never begun, or cut off by the end of a drain)."""

    waiting: int
    running: int
    done: int
    failed: int
    dropped: int


class Reaper:
    """Runs remote releases that nobody waits for.

    capacity  releases held at most; the oldest is dropped beyond it (its lease or window expires by
              itself), default 10,000
    deadline  seconds one release may take, default 2; one that resists its cancellation is let go
    batch     releases run side by side, default 64: a store that batches sends them as one call

    Releases run in an empty context: what handed them over, with its deadline, is over by then.
    """

    def __init__(self, *, capacity: int = 10_000, deadline: float = 2.0, batch: int = 64) -> None:
        self._waiting: deque[tuple[str, Release]] = deque()
        self._capacity, self._deadline, self._batch = capacity, deadline, batch
        self._workers: set[asyncio.Task[None]] = set()
        self._running = self._done = self._failed = self._dropped = 0

    def hand_over(self, what: str, release: Release) -> None:
        """Take over a release; never blocks, never raises. Call it on the event loop's thread."""
        if len(self._waiting) >= self._capacity:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append((what, release))
        if len(self._workers) < self._batch:
            loop = asyncio.get_running_loop()
            worker = loop.create_task(self._work(), name="reaper", context=Context())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def _work(self) -> None:
        worker = asyncio.current_task()
        try:
            while self._waiting:
                what, release = self._waiting.popleft()
                self._running += 1
                try:
                    await self._release(what, release)
                finally:
                    self._running -= 1
        finally:  # at once, not by the callback: a release that comes now needs a new worker
            self._workers.discard(worker)

    async def _release(self, what: str, release: Release) -> None:
        async def work() -> None:
            await release()

        task = asyncio.create_task(work(), name=f"release {what}")
        try:
            await asyncio.wait((task,), timeout=self._deadline)
            if not task.done():
                task.cancel()
                await asyncio.wait((task,), timeout=GRACE)
        except asyncio.CancelledError:  # the drain's time is up
            self._dropped += 1
            task.cancel()
            _abandon(task)
            raise
        if task.done() and not task.cancelled() and task.exception() is None:
            self._done += 1
            return
        self._failed += 1
        if not task.done():
            _abandon(task)
        failed = task.done() and not task.cancelled()
        log.warning("release failed: %s: %r", what, task.exception() if failed else "took too long")

    async def drain(self, timeout: float) -> None:
        """Wait until everything handed over has been released, at most `timeout` seconds.

        What is handed over meanwhile is waited for too. What is left when the time is up is dropped.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + timeout
        while self._workers and loop.time() < ends:
            await asyncio.wait(self._workers, timeout=ends - loop.time())
        if not self._workers:
            return
        log.warning("%d releases were not done within %g s", len(self._waiting) + self._running, timeout)
        self._dropped += len(self._waiting)
        self._waiting.clear()
        for worker in self._workers:
            worker.cancel()
        await asyncio.wait(self._workers, timeout=1.0)

    def statistics(self) -> ReaperStatistics:
        return ReaperStatistics(
            len(self._waiting), self._running, self._done, self._failed, self._dropped
        )
