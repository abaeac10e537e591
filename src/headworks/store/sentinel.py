"""The way to whoever is primary now, by what the sentinels say.

The sentinels are asked when nothing is known, when a call to the primary failed, and every second
while calls are made: a primary that hangs, or has been cut off from its sentinels and does not know it,
says nothing by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from headworks.store.batch import Argument, GiveUp, posted, run
from headworks.store.protocol import Receiver, StoreDown
from headworks.store.scripts import Script
from headworks.store.wire import Endpoint, Server

log = logging.getLogger("headworks")

CHECK_EVERY = 1.0
"""Seconds between questions to the sentinels while calls are made."""
SENTINEL_TIMEOUT = 0.3
"""Seconds for one sentinel to answer before the next is asked."""


class Primary:
    """A `Link` to the primary that the sentinels call `name`.

    sentinels    asked in turn, the one that answered last first
    server       how to talk to the primary: user, password, database, TLS
    connections  to the primary at most, ≥ 1
    """

    def __init__(
        self, name: str, sentinels: Sequence[Endpoint], server: Endpoint, *, connections: int = 1
    ) -> None:
        self._name, self._template, self._connections = name, server, connections
        self._sentinels = [Server(sentinel) for sentinel in sentinels]
        self._server: Server | None = None
        self._check: asyncio.Task[Server] | None = None
        self._checked = 0.0

    def slot(self, key: str) -> int | None:
        return None

    def post(
        self, script: Script, keys: Sequence[str | bytes], args: Sequence[Argument], to: Receiver
    ) -> GiveUp:
        return posted(self._run(script, keys, args), to)

    async def _run(self, script: Script, keys: Sequence[str | bytes], args: Sequence[Argument]) -> Any:
        loop = asyncio.get_running_loop()
        if self._check is None and loop.time() - self._checked >= CHECK_EVERY:
            self._checked = loop.time()
            self._check = loop.create_task(self._look(), name="store-sentinel")
            self._check.add_done_callback(self._looked)
        server = self._server
        if server is None:
            if self._check is None:
                raise StoreDown(f"no primary {self._name!r} is known")
            server = await asyncio.shield(self._check)
        try:
            return await run(server, script, keys, args)
        except StoreDown:
            self._checked = min(self._checked, loop.time() - CHECK_EVERY)
            raise

    async def _look(self) -> Server:
        """Ask the sentinels in turn; the first that knows the primary decides."""
        why = "no sentinel is named"
        for sentinel in list(self._sentinels):
            try:
                async with asyncio.timeout(SENTINEL_TIMEOUT):
                    found = await sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
            except (StoreDown, TimeoutError) as error:
                why = f"{sentinel.endpoint}: {error or 'no answer in time'}"
                continue
            if found is None:
                why = f"{sentinel.endpoint} knows no primary {self._name!r}"
                continue
            self._sentinels.remove(sentinel)
            self._sentinels.insert(0, sentinel)
            return await self._use(found[0].decode(), int(found[1]))
        raise StoreDown(f"no primary found: {why}")

    async def _use(self, host: str, port: int) -> Server:
        old = self._server
        if old is not None and (old.endpoint.host, old.endpoint.port) == (host, port):
            return old
        endpoint = replace(self._template, host=host, port=port)
        self._server = new = Server(endpoint, connections=self._connections)
        if old is not None:
            log.warning("store: the primary is now %s, no longer %s", endpoint, old.endpoint)
            await old.aclose()
        return new

    def _looked(self, check: asyncio.Task[Server]) -> None:
        self._check = None
        if not check.cancelled() and (error := check.exception()) is not None:
            log.debug("store: %s", error)

    async def aclose(self) -> None:
        if (check := self._check) is not None:
            check.cancel()
            await asyncio.wait((check,))
        for server in (*self._sentinels, *([self._server] if self._server else [])):
            await server.aclose()
