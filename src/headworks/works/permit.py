"""Who may be away for load: few pods at once, and none when many are under pressure.

A pod that alone is full, or fails, helps by leaving: the others have room. When many are, there is no
room, and each one that leaves only takes its part of the work away. So every pod under pressure holds
one of few places in the store, whether it has left or not, and one that finds them all taken leaves
word that there is a crowd. While that word stands, nobody may be away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from headworks.limits.shapes import Window
from headworks.policy.settings import Policy
from headworks.store.protocol import Ask, Question, Store

LEAVING: Final = 0.3
"""The part of all pods that may be away for load at once."""
LEASE: Final = 10.0
"""Seconds after which the place of a pod that died is free again."""
CROWD: Final = Window.of(1, 3.0)
"""The word that there is a crowd, as a limit that is used up: it stands for three seconds, and whoever
is refused a place renews it every second."""


class LeavePermit:
    """One pod's place among those that may be away for load: a lease in the shared store.

    name    the service's, which all its pods share
    holder  the pod's
    places  tells how many may be away at once, now; 0: the fleet is too small to spare a pod
    """

    def __init__(self, store: Store, *, name: str, holder: str, places: Callable[[], int]) -> None:
        self._store, self._holder, self._places = store, holder, places
        self._key, self._crowd = f"{{health:{name}}}:leave", f"{{health:{name}}}:crowd"

    async def hold(self) -> bool:
        """Take or keep the place; whether the pod may be away. Without the store it may not."""
        places = self._places()
        if places < 1:
            return False
        held = await self._store.lease(self._key, holder=self._holder, limit=places, ttl=LEASE)
        word = await self._store.ask(Question((Ask("crowd", self._crowd, CROWD, 0 if held else 1),)))
        return held > 0 and not word.degraded and word.limits[0].remaining > 0

    async def give_back(self) -> None:
        await self._store.release(self._key, holder=self._holder)


def permit_of(policy: Policy, store: Store, pod: str) -> LeavePermit | None:
    """The pod's leave-permit; None where it shares no store. There are as many pods as were last counted
    (`store/heartbeat.py`), whatever an autoscaler did."""
    if policy.store is None:
        return None

    def places() -> int:
        return int(LEAVING * store.statistics().processes)

    return LeavePermit(store, name=policy.service.name, holder=pod, places=places)
