"""headworks: layered traffic control for FastAPI services that call rate-limited vendors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headworks.errors import HeadworksError, PolicyError, Refused

if TYPE_CHECKING:
    from headworks.identity import Caller
    from headworks.works import Headworks

__all__ = ["Caller", "Headworks", "HeadworksError", "PolicyError", "Refused"]


def __getattr__(name: str) -> object:
    # `Headworks` brings every layer with it; who needs a part of the house does not pay for all.
    if name == "Headworks":
        from headworks.works import Headworks

        return Headworks
    if name == "Caller":
        from headworks.identity import Caller

        return Caller
    raise AttributeError(f"module 'headworks' has no attribute {name!r}")
