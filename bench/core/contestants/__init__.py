"""Everyone who takes part: ours, the peers each at its best honest configuration, and the floors."""

from __future__ import annotations

from bench.core.contest import Contestant
from bench.core.contestants import floors, ours, peer_limits, peer_pyrate, peer_throttled

OURS = ours.CONTESTANTS
AS_A_LAYER = ours.AS_A_LAYER
PEERS = (*peer_limits.CONTESTANTS, *peer_pyrate.CONTESTANTS, *peer_throttled.CONTESTANTS)
FLOORS_OVER_A_SERVER = floors.OVER_A_SERVER
FLOORS_IN_MEMORY = floors.IN_MEMORY

LIMITERS: tuple[Contestant, ...] = (*OURS, *PEERS)
