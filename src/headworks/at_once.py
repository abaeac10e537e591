"""What there is to await of a thing that has been done already: nothing, and no coroutine for it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final


class _AtOnce:
    __await__ = iter(()).__iter__  # which is called without a frame of its own, as nothing binds it


AT_ONCE: Final[Awaitable[None]] = _AtOnce()  # type: ignore[assignment]  # an iterator is enough to await
"""The only one, so that whoever is given it can see that there is nothing to wait for."""
