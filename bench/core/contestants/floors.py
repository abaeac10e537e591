"""What nothing can be faster than: the same loop, the same clients, and no limiter."""

from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager

from bench.core.contest import Contestant, Opened, Setup
from bench.core.contestants.pool import client
from headworks.store.batch import run
from headworks.store.scripts import Script
from headworks.store.topology import link_to

TRIVIAL = "return 1"


@asynccontextmanager
async def _empty(_: Setup) -> Opened:
    async def hit(_: str) -> bool:
        return True

    yield hit


@asynccontextmanager
async def _ping(setup: Setup) -> Opened:
    async with client(setup.url) as redis:

        async def hit(_: str) -> bool:
            return bool(await redis.ping())

        yield hit


@asynccontextmanager
async def _script(setup: Setup) -> Opened:
    async with client(setup.url) as redis:
        sha = await redis.script_load(TRIVIAL)

        async def hit(key: str) -> bool:
            return bool(await redis.evalsha(sha, 1, key, 0))

        yield hit


@asynccontextmanager
async def _our_script(setup: Setup) -> Opened:
    link = link_to(setup.url, connections=2)
    script = Script(
        "trivial", TRIVIAL, hashlib.sha1(TRIVIAL.encode(), usedforsecurity=False).hexdigest()
    )

    async def hit(key: str) -> bool:
        return bool(await run(link, script, [key], [0]))

    yield hit
    await link.aclose()


@asynccontextmanager
async def _pipelined(setup: Setup) -> Opened:
    async with client(setup.url) as redis:
        sha = await redis.script_load(TRIVIAL)

        async def hit(key: str) -> bool:
            pipeline = redis.pipeline(transaction=False)
            for _ in range(setup.at_once):
                pipeline.evalsha(sha, 1, key, 0)
            return all(await pipeline.execute())

        yield hit


EMPTY = Contestant("empty coroutine", "floor", "floor", _empty)
PING = Contestant("PING", "floor", "floor", _ping)
SCRIPT = Contestant("trivial EVALSHA", "floor", "floor", _script)
OUR_SCRIPT = Contestant("trivial EVALSHA, our connection", "floor", "floor", _our_script)
PIPELINED = Contestant("EVALSHA, all in a pipeline", "floor", "floor", _pipelined, bundles=True)

IN_MEMORY = (EMPTY,)
OVER_A_SERVER = (PING, SCRIPT, OUR_SCRIPT, PIPELINED)
