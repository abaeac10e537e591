"""The class that a trusted caller states for its request, in a header.

Believed only when the *client* is within `service.trust`: the peer itself, or whoever stands behind
trusted hops, as `address.client_within` walks them, and nothing forwarded leaves a doubt of it. A caller
from outside has an address of its own behind the gateway, so what it writes is not looked at, whether
the gateway removes it or not.

The class is never above that of a known key that comes with the request: a service that calls on behalf
of a user may make the user's request less urgent, not more than the user's tier is worth. Without a
known key the header decides.
"""

from __future__ import annotations

from typing import Final

from starlette.types import Scope

from headworks.address import Trust, client_within
from headworks.current import Criticality

_NAMES: Final = {kind.name.lower().encode(): kind for kind in Criticality}


class StatedClass:
    """Reads the class out of the header of this name."""

    def __init__(self, header: str) -> None:
        self._header = header.lower().encode("latin-1")

    def of(self, scope: Scope, trust: Trust) -> Criticality | None:
        """The class stated; None when there is none, several, an unknown one, or nobody to believe.

        trust  the networks whose word counts
        """
        sent = [value for name, value in scope["headers"] if name == self._header]
        stated = _NAMES.get(sent[0].strip().lower()) if len(sent) == 1 else None
        return stated if stated is not None and client_within(scope, trust) else None
