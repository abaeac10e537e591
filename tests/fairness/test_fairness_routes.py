"""Which route a request takes, asked before routing: always what the router then does."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Match, Mount, Route, Router, WebSocketRoute
from starlette.testclient import TestClient

from headworks.fairness import routes as routes_module
from headworks.fairness.routes import Routes, cost, limit
from headworks.policy.units import Rate


def scope(path: str, method: str = "GET", host: str = "testserver", root: str = "") -> dict[str, Any]:
    return {
        "type": "http",
        "path": root + path,
        "root_path": root,
        "method": method,
        "headers": [(b"host", host.encode())],
    }


def template(routes: Routes, path: str, method: str = "GET", **more: str) -> str | None:
    matched = routes.find(scope(path, method, **more))
    return matched.template if matched else None


async def ok(*args: Any) -> Any:
    return PlainTextResponse("ok")


async def item(item_id: int) -> int:
    return item_id


def service() -> FastAPI:
    """An application with everything that changes how a route is found."""
    app = FastAPI()
    inner = APIRouter(prefix="/inner")
    inner.add_api_route("/items/{item_id}", item)
    shared = APIRouter()
    shared.add_api_route("/items", lambda: 1, methods=["GET"])
    shared.add_api_route("/items", lambda: 2, methods=["POST"])
    shared.include_router(inner)
    app.include_router(shared, prefix="/a")
    app.include_router(shared, prefix="/b")
    app.add_api_route("/a/{anything}", lambda anything: anything)
    app.add_api_route("/users/me", lambda: "me")
    app.add_api_route("/users/{name}", lambda name: name)
    app.add_api_route("/files/{path:path}", lambda path: path)
    app.add_api_route("/", lambda: "root")
    app.mount("/static", PlainTextResponse("file"))
    sub = FastAPI()
    sub.add_api_route("/deep/{item_id}", item)
    app.mount("/sub/{tenant}", sub)
    return app


@pytest.mark.parametrize(
    ("path", "method", "expected"),
    [
        ("/a/items", "GET", "/a/items"),
        ("/b/items", "GET", "/b/items"),
        ("/a/items", "POST", "/a/items"),
        ("/a/items", "DELETE", "/a/items"),  # a 405 belongs to the route it is about
        ("/a/inner/items/3", "GET", "/a/inner/items/{item_id}"),
        ("/b/inner/items/3", "GET", "/b/inner/items/{item_id}"),
        ("/a/other", "GET", "/a/{anything}"),
        ("/users/me", "GET", "/users/me"),  # the first match wins
        ("/users/ann", "GET", "/users/{name}"),
        ("/files/x/y/z", "GET", "/files/{path}"),
        ("/", "GET", "/"),
        ("/static/x.css", "GET", "/static"),
        ("/sub/t1/deep/3", "GET", "/sub/{tenant}/deep/{item_id}"),
        ("/sub/t1/nothing", "GET", None),
        ("/nothing", "GET", None),
        ("/docs", "GET", "/docs"),
    ],
)
def test_fastapi_routes_are_found_under_their_full_path(
    path: str, method: str, expected: str | None
) -> None:
    """Prefixes of included and nested routers, parameters, methods and mounts are all there."""
    app = service()
    assert template(Routes(app), path, method) == expected
    status = TestClient(app).request(method, path, follow_redirects=False).status_code
    assert (status == 404) == (expected is None), "the router must agree"


def test_starlette_routes_mounts_and_hosts() -> None:
    """Plain Starlette, with a host-routed part."""
    app = Starlette(
        routes=[
            Host("api.{domain}", app=Router([Route("/v1/{name}", ok)])),
            Mount("/m", routes=[Route("/x/{id:int}", ok), Mount("/n", routes=[Route("/y", ok)])]),
            Route("/m/x/{id}", ok),
            WebSocketRoute("/ws", ok),
            Mount("", routes=[Route("/last", ok)]),
        ]
    )
    routes = Routes(app)
    assert template(routes, "/v1/a", host="api.example") == "/v1/{name}"
    assert template(routes, "/v1/a") is None
    assert template(routes, "/m/x/3") == "/m/x/{id}"
    assert template(routes, "/m/x/word") is None, "the mount has it, as in the router"
    assert template(routes, "/m/n/y") == "/m/n/y"
    assert template(routes, "/ws") is None
    assert template(routes, "/last") == "/last"


def test_of_many_routes_only_those_that_may_match_are_looked_at() -> None:
    looks = 0

    class Looked(Route):
        def matches(self, scope: Any) -> Any:
            nonlocal looks
            looks += 1
            return super().matches(scope)

    app = Starlette(routes=[Looked(f"/r{number}/{{item}}", ok) for number in range(645)])
    assert template(Routes(app), "/r600/x") == "/r600/{item}"
    assert looks == 1


def test_a_route_without_parameters_is_looked_for_once() -> None:
    """Per method and path, until a route is added; one with parameters each time."""
    looks: list[str] = []

    class Table(list[Any]):
        def __iter__(self) -> Any:
            looks.append("read")
            return super().__iter__()

    app = service()
    routes = Routes(app)
    routes.templates()
    table = routes._table
    table._by_first = {first: Table(places) for first, places in table._by_first.items()}
    for _ in range(3):
        assert template(routes, "/users/me") == "/users/me"
        assert template(routes, "/a/items") == "/a/items"
        assert template(routes, "/a/items", "POST") == "/a/items"
    assert len(looks) == 3
    for _ in range(3):
        assert template(routes, "/users/ann") == "/users/{name}"
        assert template(routes, "/a/items", "DELETE") == "/a/items", "a 405 is not remembered"
    assert len(looks) == 9
    app.router.routes[:] = [r for r in app.routes if getattr(r, "path", "") != "/users/me"]
    assert template(routes, "/users/me") == "/users/{name}"


def test_what_depends_on_more_than_method_and_path_is_looked_for_each_time() -> None:
    """A host, or a route with a rule of its own, in front of the route that was found before."""

    class Canary(Route):
        def matches(self, scope: Any) -> Any:
            wanted = (b"x-canary", b"1") in scope["headers"]
            return super().matches(scope) if wanted else (Match.NONE, {})

    app = Starlette(
        routes=[
            Host("api.example", app=Router([Route("/x", ok), Mount("/y", routes=[Route("/z", ok)])])),
            Canary("/{anything}", ok),
            Route("/x", ok),
            Route("/w", ok),
        ]
    )
    routes = Routes(app)
    for _ in range(2):
        assert template(routes, "/x") == "/x"
        assert template(routes, "/w", host="api.example") is None
        assert template(routes, "/w") == "/w"
        canary = scope("/w")
        canary["headers"].append((b"x-canary", b"1"))
        found = routes.find(canary)
        assert found is not None
        assert found.template == "/{anything}"


def test_what_is_remembered_of_routes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods are the callers' own."""
    monkeypatch.setattr(routes_module, "REMEMBERED", 3)
    routes = Routes(Starlette(routes=[Route("/x", ok, methods=None), Route("/y", HTTPEndpoint)]))
    for number in range(20):
        assert template(routes, "/y", f"M{number}") == "/y"
    assert len(routes._table.known) <= 3


def test_a_root_path_is_not_part_of_the_template() -> None:
    """Behind a proxy that strips nothing, templates stay what the code says."""
    assert template(Routes(service()), "/a/items", root="/api/v2") == "/a/items"


def test_a_route_added_later_is_found() -> None:
    """Also one added to a router that was included before."""
    app = FastAPI()
    router = APIRouter()
    app.include_router(router, prefix="/r")
    routes = Routes(app)
    assert template(routes, "/r/late") is None
    router.add_api_route("/late", lambda: 1)
    app.add_api_route("/later", lambda: 1)
    assert template(routes, "/r/late") == "/r/late"
    assert template(routes, "/later") == "/later"


def test_finding_a_route_leaves_the_request_as_it_is() -> None:
    """The router sees the scope untouched."""
    request = scope("/sub/t1/deep/3")
    before = dict(request)
    Routes(service()).find(request)
    assert request == before


def test_markers_are_read_from_the_matched_route() -> None:
    """Above or below the route's decorator, on included routers, behind partials and wrappers."""
    app, router = FastAPI(), APIRouter()

    @cost(5)
    @limit("3/min")
    async def marked() -> int:
        return 1

    @functools.wraps(marked)
    async def wrapped() -> int:
        return await marked()

    @cost(2)
    @router.get("/above")
    async def above() -> int:
        return 1

    router.add_api_route("/below", marked)
    router.add_api_route("/wrapped", wrapped)
    app.include_router(router, prefix="/r")
    app.router.routes.append(Route("/partial", functools.partial(marked)))
    routes = Routes(app)
    for path in ("/r/below", "/r/wrapped", "/partial"):
        matched = routes.find(scope(path))
        assert matched is not None
        assert (matched.cost, matched.limits) == (5, ((Rate(3, 60.0), "user"),))
    matched = routes.find(scope("/r/above"))
    assert matched is not None
    assert (matched.cost, matched.limits) == (2, ())


@pytest.mark.parametrize("units", [-1, 1.5, True, "3"])
def test_a_cost_is_a_whole_number(units: Any) -> None:
    with pytest.raises(ValueError, match="whole number"):
        cost(units)


@pytest.mark.parametrize("rate", ["often", "3 tokens/min", "", "1/31d burst 1000000000"])
def test_a_limit_is_a_rate_of_requests_that_can_be_counted(rate: str) -> None:
    with pytest.raises(ValueError, match=r"rate|requests|burst"):
        limit(rate)
