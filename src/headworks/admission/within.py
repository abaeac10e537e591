"""A bound that costs nothing where nothing waits: its timer is set only once there is something to
wait for. A part of an answer is nearly always taken at once, and there are two in the smallest.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Generator
from functools import partial
from typing import Any


@types.coroutine
def within(seconds: float, work: Awaitable[None]) -> Generator[Any, None, None]:
    """Await `work`, and wait at most `seconds` for it: `TimeoutError` then, and it is cancelled."""
    steps = work.__await__()
    try:
        waits_for = next(steps)
    except StopIteration:
        return
    yield from _bounded(seconds, steps, waits_for).__await__()


async def _bounded(seconds: float, steps: Generator[Any, None, None], waits_for: Any) -> None:
    async with asyncio.timeout(seconds):
        await _onwards(steps, waits_for)


@types.coroutine
def _onwards(steps: Generator[Any, None, None], waits_for: Any) -> Generator[Any, None, None]:
    """Go on with what has begun: wait for `waits_for` first, then for whatever it waits for next."""
    while True:
        try:
            yield waits_for
        except BaseException as error:
            step = partial(steps.throw, error)
        else:
            step = partial(next, steps)
        try:
            waits_for = step()
        except StopIteration:
            return
