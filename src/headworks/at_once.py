"""What there is to await of a thing that has been done already: nothing, and no coroutine for it."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from typing import Any, Final


class _AtOnce:
    _steps: Final[Iterator[Any]] = iter(())

    def __await__(self) -> Iterator[Any]:
        return self._steps


AT_ONCE: Final[Awaitable[None]] = _AtOnce()  # type: ignore[assignment]  # an iterator is enough to await
"""The only one, so that whoever is given it can see that there is nothing to wait for."""
