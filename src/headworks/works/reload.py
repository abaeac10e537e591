"""Follows the policy file while the service runs: a new one that is sound takes the old one's place.

What is sound and may change while requests are served is exchanged as a whole, between two requests;
the counts of limits stay. A file that is not sound changes nothing, and is said aloud.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import BaseModel

from headworks.errors import PolicyError
from headworks.policy.mistakes import Location, dotted
from headworks.policy.settings import Policy
from headworks.telemetry import Changed, Telemetry

log = logging.getLogger("headworks")

ADMISSION: Final = (
    "max_in_flight",
    "max_websockets",
    "queue_timeout",
    "background_tasks",
    "lag_high",
    "memory_high",
    "shadow",
    "write_stall",
)
"""What may change of `[admission]`: the rest is the server's, or says whom to believe."""
PLACES: Final = (("admission", "max_in_flight"), ("admission", "max_websockets"))
"""Not beyond what the server lets in, who goes by the policy it was started with."""
LIVE: Final = (("fairness",), ("service", "trust"), *(("admission", name) for name in ADMISSION))
"""What may change while requests are served; all else needs a restart."""

_SECRET: Final = ("fairness", "keys")

Signature = tuple[str, int, int, int, int, int]


def signature(path: Path) -> Signature | None:
    """What tells a file from the one that was there before; None where there is none.

    The file at the end of all links counts: a ConfigMap is exchanged by a link beside it.
    """
    try:
        found = path.stat()
        where = os.path.realpath(path)
    except OSError:
        return None
    return where, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class PolicyWatch:
    """Looks at the policy file from time to time, on the loop's clock.

    path       the file
    since      its signature before the policy that runs now was read
    every      seconds between two looks, > 0
    read       reads and checks it; `PolicyError` lists what is wrong. Called in a thread
    adopt      takes a policy that is sound, at once and as a whole; `PolicyError` if it cannot
    telemetry  hears of every change and every refusal

    A file is read when two looks in a row have found the same new one, so that one which is still being
    written is left alone, and given up if it is another one after it was read.
    """

    def __init__(
        self,
        path: Path,
        since: Signature | None,
        *,
        every: float,
        read: Callable[[], Policy],
        adopt: Callable[[Policy], None],
        telemetry: Telemetry,
    ) -> None:
        self._path, self._every = path, every
        self._done = self._last = since
        self._read, self._adopt, self._telemetry = read, adopt, telemetry

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self._every)
            try:
                await self._look()
            except Exception:  # whatever a look meets, the next one comes
                log.exception("%s could not be looked at", self._path)

    async def _look(self) -> None:
        found = signature(self._path)
        if found == self._done:
            return
        if found != self._last:
            self._last = found
            return
        self._done = found  # whatever comes of it: each new file is read once
        try:
            policy = await asyncio.to_thread(self._read)
            if signature(self._path) == found:
                self._adopt(policy)
        except PolicyError as error:
            log.error("%s is refused, and the policy stays as it is:\n%s", self._path, error)
            self._telemetry.emit(Changed("policy", "refused", str(error)))


class Change(NamedTuple):
    """From one policy to another, as far as that goes without a restart.

    policy   the one to run from now on: the old one, with what may change taken from the new one
    live     where it differs from the old one
    restart  where the new one differs besides, which only a restart brings
    """

    policy: Policy
    live: tuple[str, ...]
    restart: tuple[str, ...]

    @classmethod
    def between(cls, old: Policy, new: Policy, *, most: int) -> Change:
        """most  requests and websockets that the running server has room for"""
        held = () if _places(new) <= max(most, _places(old)) else PLACES
        live: list[str] = []
        restart: list[str] = []
        for place in differences(old, new):
            may = place not in held and any(place[: len(head)] == head for head in LIVE)
            (live if may else restart).append(dotted(place))
        service = old.service.model_copy(update={"trust": new.service.trust})
        admission = old.admission.model_copy(
            update={
                name: getattr(new.admission, name)
                for name in ADMISSION
                if ("admission", name) not in held
            }
        )
        running = old.model_copy(
            update={"service": service, "admission": admission, "fairness": new.fairness}
        )
        return cls(running, tuple(live), tuple(restart))

    def tell(self, telemetry: Telemetry) -> None:
        """Say what holds from now on, and what does not."""
        if self.live:
            names = ", ".join(self.live)
            log.info("the policy file has changed in %s: from now on that holds", names)
            telemetry.emit(Changed("policy", "reloaded", names))
        if self.restart:
            names = ", ".join(self.restart)
            log.warning("the policy file has changed in %s: that needs a restart", names)
            telemetry.emit(Changed("policy", "needs-restart", names))


def _places(policy: Policy) -> int:
    """Requests and websockets in one pod at once."""
    return policy.admission.max_in_flight + policy.admission.websockets


def differences(old: Any, new: Any, at: Location = ()) -> Iterator[Location]:
    """Where two policies differ, by the names that the file has; keys of callers are not named."""
    if old == new:
        return
    if isinstance(old, BaseModel) and type(old) is type(new):
        for name, field in type(old).model_fields.items():
            yield from differences(getattr(old, name), getattr(new, name), (*at, field.alias or name))
    elif isinstance(old, dict) and isinstance(new, dict) and at != _SECRET:
        for name in sorted({*old, *new}):
            yield from differences(old.get(name), new.get(name), (*at, name))
    else:
        yield at
