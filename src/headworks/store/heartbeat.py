"""How many processes share the store: each says every few seconds that it is there, and is told.

The number is what a process goes by when the store is away, so it must rather be too high than too low:

    rises   with the first count that is higher
    falls   when every count of `LIFE` seconds was lower, without a beat failing in between: a server
            that came back empty counts only those that have found it again
    stands  while the store is away

Until the first count, and `LIFE` seconds beyond it, it is no lower than what the process was told.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context

from headworks.store.protocol import Census, Shared, StoreDown

log = logging.getLogger("headworks")

EVERY = 3.0
"""Seconds between two beats, at most; four fifths of it, at least."""
LIFE = 10.0
"""Seconds for which one beat counts: a process that died is gone then."""
PATIENCE = 1.0
"""Seconds for a beat, which nobody waits for."""


class Heartbeat:
    """This process, counted among those of its group.

    store      where they are counted
    group      whose processes; those of one group are taken to share the same limits
    processes  how many there are taken to be before any count was heard, ≥ 1
    rng        spreads the beats of many processes over time, and tells one process from another
    then       awaited after each beat; False: the store knew nothing of this process
    """

    def __init__(
        self,
        store: Shared,
        group: str,
        *,
        processes: int,
        rng: random.Random,
        then: Callable[[bool], Awaitable[None]] | None = None,
    ) -> None:
        self.processes = processes
        self._store, self._group, self._rng, self._then = store, group, rng, then
        self._heard: deque[tuple[float, int]] = deque()
        self._process = ""
        self._beating: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begin to beat, in one task that lives until `end` or its loop ends; again does nothing."""
        if self._beating is not None and not self._beating.done():
            return
        self._process = self._process or f"{os.getpid()}-{self._rng.getrandbits(64):016x}"
        loop, beat = asyncio.get_running_loop(), self._beat()  # no part of whose request came first
        self._beating = loop.create_task(beat, name="store-heartbeat", context=Context())

    async def _beat(self) -> None:
        loop, silent = asyncio.get_running_loop(), False
        while True:
            known = True
            try:
                async with asyncio.timeout(PATIENCE):
                    count, known = await self._told(LIFE)
                self._hear(count, loop.time())
                silent = False
            except Exception as error:
                self._heard.clear()
                if not silent:
                    why = str(error) or f"no answer in time ({type(error).__name__})"
                    log.warning("store: not counted, %d are taken to share it: %s", self.processes, why)
                    silent = True
            if self._then is not None:
                try:
                    await self._then(known)
                except Exception:  # whatever comes of one, the next beat follows
                    log.exception("what follows a beat failed in an unforeseen way")
            await asyncio.sleep(EVERY * self._rng.uniform(0.8, 1.0))

    async def _told(self, ttl: float) -> Census:
        return await self._store.census(self._group, process=self._process, ttl=ttl)

    def _hear(self, count: int, now: float) -> None:
        if not self._heard:
            self._heard.append((now, self.processes))
        self._heard.append((now, count))
        while self._heard[0][0] <= now - LIFE:
            self._heard.popleft()
        self.processes = max(count for _, count in self._heard)

    async def end(self) -> None:
        """Stop, and tell the store, where it listens, that there is one less."""
        if self._beating is None:
            return
        self._beating.cancel()
        await asyncio.wait((self._beating,))
        if self._heard:
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._told(0)
            except (StoreDown, TimeoutError) as error:
                log.debug("store: this process is counted a little longer: %s", error)
