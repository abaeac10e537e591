"""A bound that costs nothing where nothing waits: whoever has begun something and finds that it waits
comes here, and only then is a timer set. A part of an answer is nearly always taken at once, and there
are two in the smallest.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Generator
from functools import partial
from typing import Any, Final

TAKEN: Final = object()
"""The server took a part of an answer at once."""


async def all_within(seconds: float, work: Awaitable[None]) -> None:
    """Await something from its beginning, for at most `seconds`; see `within`."""
    steps = work.__await__()
    waits_for = next(steps, TAKEN)
    if waits_for is not TAKEN:
        await within(seconds, steps, waits_for)


async def within(seconds: float, steps: Generator[Any, None, None], waits_for: Any) -> None:
    """Await what has begun, for at most `seconds`: `TimeoutError` then, and it is cancelled.

    steps      what its `__await__` gave
    waits_for  what its first `next` gave
    """
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
