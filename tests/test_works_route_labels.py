"""Answers are counted by the route they were for, also where nobody got as far as the route."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from tests.scenarios import Service, service

from headworks.store.deny import DenyCache
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Store
from headworks.telemetry import Served

ONE = {"max_in_flight": 1}
MEMORY, REMEMBERING = MemoryStore, lambda: DenyCache(MemoryStore())


def labels(pod: Service, *statuses: int) -> list[str]:
    """The routes of answers of these statuses, in their order."""
    return [event.route for event in pod.sink.of(Served) if event.status in statuses]


@pytest.mark.parametrize("store", [MEMORY, REMEMBERING], ids=["memory", "remembering"])
async def test_a_full_pod_s_refusals(store: Callable[[], Store]) -> None:
    """Of strangers, of keys it does not know yet, and of those it knows; by template, not by path."""
    async with service(admission=ONE, store=store()) as pod:

        @pod.app.get("/items/{number}")
        async def item(number: int) -> None: ...

        await pod.get("/quick", "pro-1")
        holder = asyncio.create_task(pod.get("/slow"))
        await asyncio.sleep(1)
        for key in ("", "pro-1", "pro-2"):
            assert (await pod.get("/items/7", key)).status_code == 503
        assert (await pod.client.post("/quick")).status_code == 503, "no such method, but the path"
        assert (await pod.get("/nowhere")).status_code == 503
        await holder
        assert labels(pod, 503) == [*["/items/{number}"] * 3, "/quick", ""]
        text = pod.works._metrics.render()[1].decode()
        assert 'headworks_requests_total{method="GET",route="/items/{number}",status="503"} 3.0' in text


async def test_refusals_from_the_line_by_pressure_and_by_deadlines() -> None:
    ask = {"deadline_header": "X-Request-Timeout"}
    async with service(admission={**ONE, "queue_timeout": "2s"}, service={"name": "s", **ask}) as pod:
        await pod.get("/quick", "pro-1")
        tasks = [asyncio.create_task(pod.get("/slow", "pro-1")) for _ in range(2)]
        await asyncio.gather(*tasks)
        assert labels(pod, 503) == ["/slow"], "it waited in vain"
        for said in ("soon", "0"):
            await pod.client.get("/quick", headers={"x-request-timeout": said})
        assert labels(pod, 400, 504) == ["/quick", "/quick"]
        pod.works._pressure.level = 3.0
        assert (await pod.get("/quick", "pro-1")).json()["reason"] == "load-shed"
        assert labels(pod, 503)[1:] == ["/quick"]


async def test_what_the_application_s_middleware_answers_itself() -> None:
    async with service() as pod:

        async def closed(request: Any, onwards: Any) -> Any:
            return PlainTextResponse("who are you?", 401)

        pod.app.add_middleware(BaseHTTPMiddleware, dispatch=closed)
        pod.app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["GET"])
        asking = {"origin": "https://shop.example", "access-control-request-method": "GET"}
        await pod.client.options("/quick", headers=asking)
        await pod.get("/quick")
        await pod.get("/nowhere")
        assert labels(pod, 200, 401) == ["/quick", "/quick", ""]


async def test_what_no_route_is_there_for_has_none() -> None:
    """Nor one that has the same path without a mount's; those below a mount have the whole path."""
    async with service(admission=ONE) as pod:

        async def page(request: Any) -> PlainTextResponse:
            return PlainTextResponse("page")

        pod.app.router.routes.append(Mount("/below", routes=[Route("/page", page)]))
        await pod.get("/below/quick")
        await pod.get("/nowhere")
        assert labels(pod, 404) == ["", ""]
        holder = asyncio.create_task(pod.get("/slow"))
        await asyncio.sleep(1)
        for path in ("/below/page", "/below/quick"):
            await pod.get(path)
        await holder
        assert labels(pod, 503) == ["/below/page", ""]


async def test_a_route_whose_own_rule_fails_is_no_failure_of_the_refusal() -> None:
    class Broken(Route):
        def matches(self, scope: Any) -> Any:
            raise RuntimeError("a rule of the application's own")

    async with service(admission=ONE) as pod:
        holder = asyncio.create_task(pod.get("/slow"))
        await asyncio.sleep(1)
        pod.app.router.routes.insert(0, Broken("/quick", lambda request: None))
        assert (await pod.get("/quick")).status_code == 503
        await holder
        assert labels(pod, 503) == [""]
