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
    task = asyncio.ensure_future(work)
    ends = asyncio.get_running_loop().time() + timeout
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            left = ends - asyncio.get_running_loop().time()
            if left <= -GRACE:  # it resists its cancellation: leave it to the loop, stay bounded
                break
            if left <= 0:
                task.cancel()
            try:
                await asyncio.wait((task,), timeout=left if left > 0 else GRACE)
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        if task.done() and not task.cancelled() and task.exception() is not None:
            log.error("cleanup failed while its caller was cancelled", exc_info=task.exception())
        raise cancelled
    if not task.done() or task.cancelled():
        raise TimeoutError(f"cleanup took longer than {timeout:g} s")
    return task.result()


@dataclass(frozen=True, slots=True)
class ReaperStatistics:
    """waiting: handed over, not begun · done, failed (raised or timed out), dropped: since the start."""

    waiting: int
    done: int
    failed: int
    dropped: int


class Reaper:
    """Runs remote releases that nobody waits for.

    capacity  releases held at most; the oldest is dropped beyond it (its lease or window expires by
              itself), default 10,000
    deadline  seconds one release may take, default 2
    batch     releases run side by side, default 64: a store that batches sends them as one call
    """

    def __init__(self, *, capacity: int = 10_000, deadline: float = 2.0, batch: int = 64) -> None:
        self._waiting: deque[tuple[str, Release]] = deque()
        self._capacity, self._deadline, self._batch = capacity, deadline, batch
        self._runner: asyncio.Task[None] | None = None
        self._done = self._failed = self._dropped = 0

    def hand_over(self, what: str, release: Release) -> None:
        """Take over a release; never blocks, never raises. Call it on the event loop's thread."""
        if len(self._waiting) >= self._capacity:
            self._waiting.popleft()
            self._dropped += 1
        self._waiting.append((what, release))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.get_running_loop().create_task(self._run(), name="reaper")

    async def _run(self) -> None:
        while self._waiting:
            size = min(self._batch, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(size)]
            await asyncio.gather(*(self._release(what, release) for what, release in batch))

    async def _release(self, what: str, release: Release) -> None:
        try:
            async with asyncio.timeout(self._deadline):
                await release()
            self._done += 1
        except Exception:
            self._failed += 1
            log.warning("release failed: %s", what, exc_info=True)

    async def drain(self, timeout: float) -> None:
        """Wait until everything handed over has been released, at most `timeout` seconds."""
        if self._runner is None or self._runner.done():
            return
        _, late = await asyncio.wait((self._runner,), timeout=timeout)
        if late:
            log.warning("%d releases were not done within %g s", len(self._waiting), timeout)
            self._runner.cancel()
            await asyncio.wait((self._runner,), timeout=1.0)

    def statistics(self) -> ReaperStatistics:
        return ReaperStatistics(len(self._waiting), self._done, self._failed, self._dropped)
