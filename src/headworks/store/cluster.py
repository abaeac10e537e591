"""The way to a cluster: every call goes to the node that has its slot.

    MOVED   the slot has a new home: go there, remember it, and fetch the whole map
    ASK     the slot is on its way: go there once, behind ASKING on the same connection
    a failure, or a call that was given up    the map may be old: fetch it

The map is fetched in the background, from any node that answers, at most five times a second; only
when there is none yet do calls wait for it. (redis-py's client sends ASKING and what it is for over
its pool, where they may take two connections; and it sends a call again whose reply was lost.)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from redis.crc import key_slot

from headworks.store.batch import Argument, GiveUp, ServerError, posted, run
from headworks.store.protocol import Receiver, StoreDown
from headworks.store.scripts import Script
from headworks.store.wire import Endpoint, Server

log = logging.getLogger("headworks")

SLOTS = 16384
REDIRECTS = 5
"""Times one call may be sent on."""
NODE_TIMEOUT = 0.3
"""Seconds for one node to tell the map before the next is asked."""
FETCH_EVERY = 0.2
"""Seconds between two fetches of the map, at least."""

Address = tuple[str, int]


class Cluster:
    """A `Link` to a cluster.

    nodes  some of its nodes, asked for the map as long as no others are known

    One connection to each node: calls travel one behind the other on it.
    """

    def __init__(self, nodes: Sequence[Endpoint]) -> None:
        self._template = nodes[0]
        self._seeds: list[Address] = [(node.host, node.port) for node in nodes]
        self._servers: dict[Address, Server] = {}
        self._homes: list[Address | None] = []
        self._fetch: asyncio.Task[None] | None = None
        self._fetched = float("-inf")
        self._old = True

    def slot(self, key: str) -> int | None:
        return int(key_slot(key.encode()))

    def post(
        self, script: Script, keys: Sequence[str | bytes], args: Sequence[Argument], to: Receiver
    ) -> GiveUp:
        return posted(self._run(script, keys, args), to)

    async def _run(self, script: Script, keys: Sequence[str | bytes], args: Sequence[Argument]) -> Any:
        await self._map()
        try:
            return await self._sent(script, keys, args)
        except ServerError as error:
            self._old = self._old or str(error).startswith(("CLUSTERDOWN", "READONLY", "MASTERDOWN"))
            raise
        except (StoreDown, asyncio.CancelledError):
            self._old = True
            raise

    async def _sent(self, script: Script, keys: Sequence[str | bytes], args: Sequence[Argument]) -> Any:
        server, asking = self._home(keys), False
        for _ in range(REDIRECTS):
            try:
                if asking:
                    return await _asking(server, script, keys, args)
                return await run(server, script, keys, args)
            except ServerError as error:
                kind, _, rest = str(error).partition(" ")
                if kind not in ("MOVED", "ASK"):
                    raise
                slot, _, where = rest.partition(" ")
                host, _, port = where.rpartition(":")
                address = (host or server.endpoint.host, int(port))
                asking = kind == "ASK"
                if not asking:
                    self._homes[int(slot)], self._old = address, True
                server = self._server(address)
        raise StoreDown(f"the cluster sent a call on {REDIRECTS} times, last to {server.endpoint}")

    def _home(self, keys: Sequence[str | bytes]) -> Server:
        key = keys[0] if keys else b""
        slot = int(key_slot(key if isinstance(key, bytes) else key.encode()))
        address = self._homes[slot]
        if address is None:
            self._old = True
            raise StoreDown(f"no node of the cluster has slot {slot}")
        return self._server(address)

    def _server(self, address: Address) -> Server:
        server = self._servers.get(address)
        if server is None:
            endpoint = replace(self._template, host=address[0], port=address[1])
            server = self._servers[address] = Server(endpoint)
        return server

    async def _map(self) -> None:
        """Fetch the map where it may be old; wait for it only where there is none."""
        if not self._old and self._homes:
            return
        loop = asyncio.get_running_loop()
        if self._fetch is None and loop.time() - self._fetched >= FETCH_EVERY:
            self._fetched, self._old = loop.time(), False
            self._fetch = loop.create_task(self._fetch_map(), name="store-cluster-map")
            self._fetch.add_done_callback(self._map_fetched)
        if self._homes:
            return
        if self._fetch is None:
            raise StoreDown("no node of the cluster tells who has which slot")
        await asyncio.shield(self._fetch)

    async def _fetch_map(self) -> None:
        why = ""
        known = list(dict.fromkeys([*self._servers, *self._seeds]))
        for address in known:
            try:
                async with asyncio.timeout(NODE_TIMEOUT):
                    ranges = await self._server(address).command("CLUSTER", "SLOTS")
            except (StoreDown, TimeoutError) as error:
                why = f"{address[0]}:{address[1]}: {error or 'no answer in time'}"
                if address in self._servers:  # asked last the next time
                    self._servers[address] = self._servers.pop(address)
                continue
            await self._keep(ranges, address[0])
            return
        raise StoreDown(f"no node of the cluster tells who has which slot; {why}")

    async def _keep(self, ranges: Sequence[Any], asked: str) -> None:
        homes: list[Address | None] = [None] * SLOTS
        for first, last, primary, *_ in ranges:
            host = primary[0].decode() if primary[0] else ""
            address = (asked if host in ("", "?") else host, int(primary[1]))
            homes[first : last + 1] = [address] * (last + 1 - first)
        self._homes = homes
        at_home = set(homes)
        for address in [known for known in self._servers if known not in at_home]:
            await self._servers.pop(address).aclose()

    def _map_fetched(self, fetch: asyncio.Task[None]) -> None:
        self._fetch = None
        if not fetch.cancelled() and (error := fetch.exception()) is not None:
            self._old = True
            log.debug("store: %s", error)

    async def aclose(self) -> None:
        if (fetch := self._fetch) is not None:
            fetch.cancel()
            await asyncio.wait((fetch,))
        for server in self._servers.values():
            await server.aclose()


async def _asking(
    server: Server, script: Script, keys: Sequence[str | bytes], args: Sequence[Argument]
) -> Any:
    """Both in a row on the server's one connection. By source: ASKING holds for one command only, so
    there is no second try for a node that does not know the script."""
    asked = server.command("ASKING")
    answer = server.command("EVAL", script.source, len(keys), *keys, *args)
    try:
        await asked
    except BaseException:
        answer.cancel()
        raise
    return await answer
