"""Many decisions, one script call: what is asked in the same tick, or while calls are on their way."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Protocol

from headworks.store.protocol import StoreDown
from headworks.store.scripts import Script

Argument = bytes | str | int


class ServerError(StoreDown):
    """The server answered with an error; the connection is as good as before.

    Its text is the server's, such as "READONLY You can't write …" or "MOVED 3999 127.0.0.1:6381".
    """


class Link(Protocol):
    """The way to the servers that hold the state: one, a primary behind sentinels, or a cluster.

    It keeps its own connections, bounded, and opens them again by itself after a failure.
    """

    def run(
        self, script: Script, keys: Sequence[str | bytes], args: Sequence[Argument]
    ) -> Awaitable[Any]:
        """Run a script once; its reply, strings as bytes. (An `async def` will do.)

        All keys are of one `slot`. A server that does not know the script is given its source, within
        the same call. Raises `ServerError` for an error reply, `StoreDown` when there is no reply: the
        script may have run then, so it is never sent twice. May be cancelled at any await.
        """
        ...

    def slot(self, key: str) -> int | None:
        """Keys may go in one call when they have the same slot; None: all keys may."""
        ...

    async def aclose(self) -> None: ...
