"""The whole way in, in virtual time: policy in, an application protected, requests through it."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tests.protected import POLICY, Service, chat_service

from headworks import Headworks, PolicyError
from headworks.policy.load import parse
from headworks.telemetry import Decided


async def test_the_order_of_the_way_in() -> None:
    """Admission, then fairness, then the application; outside of all of them, probes."""
    order: list[str] = []

    class Step:
        def __init__(self, app: Any, name: str) -> None:
            self.app, self.name = app, name

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            order.append(self.name)
            await self.app(scope, receive, send)

    class Sink:
        def record(self, event: Any) -> None:
            if isinstance(event, Decided):
                order.append(event.layer)

    app = FastAPI(middleware=[Middleware(Step, name="added before")])
    service = Service(app)
    service.works.telemetry.add(Sink())
    app.add_middleware(Step, name="added after")

    @app.get("/hello")
    async def hello() -> str:
        order.append("handler")
        return "hello"

    async with service.client() as client:
        await client.get("/hello")
        assert order == ["admission", "added after", "added before", "fairness", "handler"]
        order.clear()
        assert (await client.get("/health")).status_code == 200
        assert order == []


async def test_two_headworks_live_side_by_side() -> None:
    """Neither counts, gauges nor vendors are shared, nor can one charge the other's request."""
    first, second = chat_service(), chat_service()
    async with first.client(key="free-1") as client:
        assert [(await client.get("/hello")).status_code for _ in range(11)][-1] == 429
    async with second.client(key="free-1") as client:
        assert (await client.get("/hello")).status_code == 200

    @first.app.get("/foreign")
    async def foreign() -> None:
        await second.works.charge(1)

    async with first.client(key="pro-1") as client:
        with pytest.raises(RuntimeError, match="charge"):
            await client.get("/foreign")


async def test_starlette_applications_work_too() -> None:
    async def hello(request: Any) -> PlainTextResponse:
        return PlainTextResponse("hello")

    service = Service(Starlette(routes=[Route("/chat", hello)]))
    async with service.client(key="pro-1") as client:
        assert [(await client.get("/chat")).status_code for _ in range(4)] == [200, 200, 200, 429]


def test_protect_says_clearly_what_is_wrong() -> None:
    """Twice, too late, or on something else."""
    service = Service()
    with pytest.raises(RuntimeError, match="twice"):
        service.works.protect(FastAPI())
    started = FastAPI()
    started.middleware_stack = started.build_middleware_stack()
    with pytest.raises(RuntimeError, match="too late"):
        Headworks(parse(POLICY, "test", {})).protect(started)
    with pytest.raises(TypeError, match="FastAPI or Starlette"):
        Headworks(parse(POLICY, "test", {})).protect("app")  # type: ignore[type-var]  # that is the test


def test_an_unknown_vendor_is_answered_with_the_known_ones() -> None:
    policy = POLICY | {"vendors": {"llm": {"base_url": "https://llm.example/v1", "quota": ["60/min"]}}}
    works = Headworks(parse(policy, "test", {}))
    assert works.vendor("llm").base_url == "https://llm.example/v1"
    with pytest.raises(LookupError, match=r"no vendor 'lmm'; it has: llm"):
        works.vendor("lmm")


def test_a_policy_file_is_loaded_with_its_environment(tmp_path: Any) -> None:
    """The pod's name comes from the environment; a broken file lists its mistakes."""
    file = tmp_path / "headworks.toml"
    file.write_text(
        'schema = 1\n[service]\nname = "svc"\n[fairness]\ndefault_tier = "free"\n'
        '[fairness.tiers]\nfree = { rate = "10/min" }\n'
    )
    works = Headworks.load(file, environ={"HEADWORKS_POD": "pod-7"})
    assert (works.pod, works.policy.service.name) == ("pod-7", "svc")
    file.write_text("schema = 1\n")
    with pytest.raises(PolicyError, match="service"):
        Headworks.load(file, environ={})


def test_the_environments_policy_replaces_the_one_that_is_named(tmp_path: Any) -> None:
    """`headworks serve --policy` decides; an empty variable names nothing."""
    for name in ("named", "told"):
        (tmp_path / f"{name}.toml").write_text(
            f'schema = 1\n[service]\nname = "{name}"\n[fairness]\ndefault_tier = "free"\n'
            '[fairness.tiers]\nfree = { rate = "10/min" }\n'
        )
    named, told = tmp_path / "named.toml", str(tmp_path / "told.toml")
    assert Headworks.load(named, environ={"HEADWORKS_POLICY": told}).policy.service.name == "told"
    assert Headworks.load(environ={"HEADWORKS_POLICY": told}).policy.service.name == "told"
    assert Headworks.load(named, environ={"HEADWORKS_POLICY": ""}).policy.service.name == "named"


def test_a_policy_that_is_missing_is_named_in_full(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PolicyError) as caught:
        Headworks.load(environ={})
    assert str(caught.value) == f"{tmp_path}/headworks.toml: there is no such file"
