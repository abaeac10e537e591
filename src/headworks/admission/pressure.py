"""How hard the pod is pressed, by what only shows in samples: late event loop, memory.

    strain = max(lag / lag_high, resident memory / memory_high)

Each sample moves one number, the *level*: up by `RISE` while the strain is 1 or more, down by `SINK`
while it is below `EASED`, not at all between the two. The level says who is shed: up to 1 a growing part
of `background`, from 1 to 2 all of it and a growing part of `sheddable`, from 2 to 3 `default` too;
`critical` never. So pressure sheds the least that helps, at once, and lets back in slowly.

A part of a class is a part of its tenants, not of its requests: tenant t is shed while
hash(t, hour) / 2³² is below the part. All pods agree on whom, so that trying again elsewhere is no use,
what one user does succeeds or fails as a whole, and every hour it meets others. (After the user
cohorts of DAGOR: Zhou et al., Overload Control for Scaling WeChat Microservices, SoCC 2018.)

Places and line need no samples: `slots.py` and `waiting.py` decide by them request by request.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from headworks.current import Criticality
from headworks.telemetry import Changed, Telemetry

EVERY: Final = 0.25
"""Seconds between two samples."""
RISE: Final = 0.25
SINK: Final = 0.05
"""What a sample adds to the level, or takes from it: from nobody to all but critical in 3 s, back in
15."""
EASED: Final = 0.9
"""The strain below which the level sinks."""
MOST: Final = float(Criticality.CRITICAL)

CGROUP: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
STATM: Final = Path("/proc/self/statm")


class Pressure:
    """Who is shed, as of the last sample. Without bounds nobody is, and nothing is sampled.

    lag_high     seconds by which the event loop may wake late, > 0; None: does not matter
    memory_high  bytes of resident memory, ≥ 1; None: does not matter
    resident     tells the process's resident memory, in bytes
    hour         tells which hour it is, the same on every pod
    telemetry    hears when shedding begins and ends
    """

    def __init__(
        self,
        *,
        lag_high: float | None = None,
        memory_high: int | None = None,
        resident: Callable[[], int] | None = None,
        hour: Callable[[], int] = lambda: 0,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._resident, self._hour, self._telemetry = resident or resident_memory, hour, telemetry
        self._salt = b""
        self.level = 0.0
        self.lag, self.memory = 0.0, 0
        self.bound(lag_high, memory_high)

    def bound(self, lag_high: float | None, memory_high: int | None) -> None:
        """Go by these bounds from now on. Without any, nobody is shed any more."""
        self._lag_high, self._memory_high = lag_high, memory_high
        if not self.bounded:
            self._move(0.0)

    @property
    def bounded(self) -> bool:
        """Whether there is anything to sample."""
        return self._lag_high is not None or self._memory_high is not None

    def sheds(self, criticality: Criticality, tenant: str) -> bool:
        """Whether this tenant's requests of this class are shed for now."""
        part = self.level - criticality
        return part >= 1.0 or (part > 0.0 and self._cohort(tenant) < part * 2**32)

    async def watch(self) -> None:
        """Take a sample every quarter of a second, until cancelled, or nothing is bounded any more."""
        loop = asyncio.get_running_loop()
        while self.bounded:
            due = loop.time() + EVERY
            await asyncio.sleep(EVERY)
            self.sample(max(0.0, loop.time() - due))

    def sample(self, lag: float) -> None:
        """Take note that the loop woke up `lag` seconds late."""
        strain, self.lag, self._salt = 0.0, lag, self._hour().to_bytes(8)
        if self._lag_high is not None:
            strain = lag / self._lag_high
        if self._memory_high is not None:
            with suppress(OSError):  # out of file descriptors: as it was
                self.memory = self._resident()
            strain = max(strain, self.memory / self._memory_high)
        if strain >= 1.0:
            self._move(min(MOST, self.level + RISE))
        elif strain < EASED and self.level > 0.0:
            self._move(max(0.0, self.level - SINK))

    def _cohort(self, tenant: str) -> int:
        """A tenant's place among all, 0 to 2³² − 1, for this hour."""
        digest = hashlib.blake2b(tenant.encode(), digest_size=4, salt=self._salt).digest()
        return int.from_bytes(digest)

    def _move(self, level: float) -> None:
        began, ended = self.level == 0.0 < level, level == 0.0 < self.level
        self.level = level
        if self._telemetry is not None and (began or ended):
            state, why = "shedding" if began else "eased", f"lag {self.lag:.3f} s, {self.memory} bytes"
            self._telemetry.emit(Changed("admission", state, why))


def resident_memory() -> int:
    """This process's resident memory in bytes; `OSError` where there is no /proc."""
    return int(STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def container_memory() -> int | None:
    """The bytes that the container may have, in either version of cgroups; None when unlimited."""
    for path in CGROUP:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 2**60:  # the first version writes a huge number for none
            return int(text)
    return None
