"""Start and stop of everything, around the application's own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from tests.protected import INSIDE, POLICY, Service

from headworks import Headworks
from headworks.current import current
from headworks.health import PortTaken
from headworks.local.probe import free_ports
from headworks.policy.load import parse
from headworks.store.memory import MemoryStore


async def test_the_lifespan_starts_and_stops_everything_around_the_application_s_own() -> None:
    """Ready only after the application's start-up; draining before its end; start and stop repeat."""
    seen: list[bool] = []

    @asynccontextmanager
    async def own(app: Any) -> AsyncIterator[dict[str, int]]:
        seen.append(service.works._health.ready)
        yield {"number": 7}
        seen.append(service.works._health.ready)

    service = Service(FastAPI(lifespan=own))
    async with service.client(INSIDE) as client:
        assert (await client.get("/ready")).json()["reasons"] == ["starting"]
        for _ in range(2):
            async with service.running():
                ready = await client.get("/ready")
                assert (ready.status_code, ready.json()["store"]["state"]) == (200, "up")
            assert (await client.get("/ready")).json()["reasons"] == ["draining"]
    assert seen == [False, True, False, True]
    await service.works.start()
    await service.works.start()
    await service.works.stop()
    await service.works.stop()
    assert len(asyncio.all_tasks()) == 1


async def test_the_policy_says_who_is_inside() -> None:
    """`management.allow` in place of `service.trust`; empty for nobody but this machine."""
    for allow, metrics in ({"allow": ["203.0.113.0/24"]}, [200, 404]), ({"allow": []}, [404, 404]):
        service = Service(policy={"management": allow})
        seen = []
        for address in ("203.0.113.7", INSIDE):
            async with service.client(address) as client:
                seen.append((await client.get("/metrics")).status_code)
        assert seen == metrics


@pytest.mark.real
async def test_the_management_port_is_there_from_before_the_start_until_after_the_end() -> None:
    """It says `starting` while the application starts up, and `draining` until everything has ended."""
    port = free_ports("127.0.0.1", 1, random.Random())[0]
    seen: list[tuple[int, list[str]]] = []

    async def look() -> None:
        async with httpx2.AsyncClient(trust_env=False) as client:
            answer = await client.get(f"http://127.0.0.1:{port}/ready")
        seen.append((answer.status_code, answer.json()["reasons"]))

    @asynccontextmanager
    async def own(app: Any) -> AsyncIterator[None]:
        await look()
        yield
        await look()

    class Closing(MemoryStore):
        async def aclose(self) -> None:
            await look()

    policy = parse(POLICY | {"management": {"port": port, "host": "127.0.0.1"}}, "test", {})
    app = Headworks(policy, store=Closing()).protect(FastAPI(lifespan=own))
    async with app.router.lifespan_context(app):
        await look()
        second = Headworks(policy).protect(FastAPI())
        with pytest.raises(PortTaken, match=f"127.0.0.1:{port}"):
            async with second.router.lifespan_context(second):
                pass
    assert seen == [(503, ["starting"]), (200, []), (200, []), (503, ["draining"])]
    with pytest.raises(httpx2.ConnectError):
        await look()


async def test_stopping_waits_for_requests_and_their_clean_ups() -> None:
    """In flight first, then what they left to be cleaned up."""
    service = Service()
    log: list[str] = []

    @service.app.get("/slow")
    async def slow() -> int:
        async def close() -> None:
            await asyncio.sleep(1)
            log.append("closed")

        current().closers.add(close)
        await asyncio.sleep(20)
        return 1

    async with service.client() as client:
        async with service.running():
            task = asyncio.create_task(client.get("/slow"))
            await asyncio.sleep(1)
        log.append("stopped")
        assert (await task).status_code == 200
    assert log == ["closed", "stopped"]


@pytest.mark.parametrize("stubborn", [False, True])
async def test_stopping_is_bounded(caplog: pytest.LogCaptureFixture, stubborn: bool) -> None:
    """A request that never ends is told so, and does not keep the pod; nor does one that resists."""
    service = Service(policy={"health": {"drain_timeout": "5s"}})

    @service.app.get("/endless")
    async def endless() -> None:
        try:
            await asyncio.sleep(50)
        finally:
            await asyncio.sleep(30 if stubborn else 0.1)

    async with service.client() as client:
        async with service.running():
            task = asyncio.create_task(client.get("/endless"))
            await asyncio.sleep(1)
            began = asyncio.get_running_loop().time()
        took = asyncio.get_running_loop().time() - began
        assert took == pytest.approx(6.0 if stubborn else 5.1)
        assert ("had not ended" in caplog.text) == stubborn
        answer = await task
        assert (answer.status_code, answer.json()["reason"]) == (503, "pod-leaving")
