"""The class that a trusted caller states for its request, in a header.

Believed only when the *client* is within `service.trust`: the peer itself, or whoever stands behind
trusted hops, as `identity.client_address` walks them. A caller from outside has an address of its own
behind the gateway, so what it writes is not looked at, whether the gateway removes it or not.

The class is never above that of a known key that comes with the request: a service that calls on behalf
of a user may make the user's request less urgent, not more than the user's tier is worth. Without a
known key the header decides.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

from starlette.types import Scope

from headworks.current import Criticality
from headworks.identity import Identity, Network

_NAMES: Final = {kind.name.lower().encode(): kind for kind in Criticality}


class StatedClass:
    """Reads the class out of a header.

    header  its name
    trust   the networks whose word counts
    """

    def __init__(self, header: str, trust: Iterable[Network]) -> None:
        self._header = header.lower().encode("latin-1")
        self._trust = tuple(trust)

    def of(self, scope: Scope, identity: Identity) -> Criticality | None:
        """The class stated; None when there is none, several, an unknown one, or nobody to believe."""
        sent = [value for name, value in scope["headers"] if name == self._header]
        stated = _NAMES.get(sent[0].strip().lower()) if len(sent) == 1 else None
        return stated if stated is not None and self._trusts(identity.address) else None

    def _trusts(self, address: str) -> bool:
        try:
            client = ipaddress.ip_network(address)  # of IPv6, the /64 that a client is counted by
        except ValueError:  # a Unix socket's peer has none
            return False
        return any(
            client.version == network.version and client.subnet_of(network)  # type: ignore[arg-type]  # same version
            for network in self._trust
        )
