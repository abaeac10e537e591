"""Which route a request will take, known before it is routed, so that limits can be asked first.

The framework's own `matches` decides, in the router's own order: the first full match, else the first
match of another method (which the router answers with 405). FastAPI keeps included routers as
branches without a path of their own; its `iter_route_contexts` lists what they hold under the
full path. Routes are sorted by their first path segment once, and again when one was added, so that
a request looks at few of them.
"""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from starlette._utils import get_route_path
from starlette.routing import BaseRoute, Host, Match, Mount, WebSocketRoute
from starlette.types import Scope

from headworks.policy.units import Rate, parse_duration, parse_rate

F = TypeVar("F", bound=Callable[..., Any])

_COST: Final = "__headworks_cost__"
_LIMIT: Final = "__headworks_limit__"
_LASTING: Final = "__headworks_lasting__"
_CANCEL: Final = "__headworks_cancel_on_disconnect__"
_CONVERTOR = re.compile(r"{(\w+):\w+}")


@dataclass(frozen=True, slots=True)
class Matched:
    """What limits need to know of a route.

    template  its full path with parameters by name, prefixes of routers and mounts included
    cost      units one request takes, ≥ 0
    rate      a limit marked on the endpoint itself
    lasting   seconds its answer may last once it has begun; None: to the request's deadline
    cancel    whether the handler is cancelled when its caller leaves
    """

    template: str
    cost: int = 1
    rate: Rate | None = None
    lasting: float | None = None
    cancel: bool = False


def cost(units: int) -> Callable[[F], F]:
    """Mark an endpoint: one request takes `units` (≥ 0) of every limit instead of one."""
    if isinstance(units, bool) or not isinstance(units, int) or units < 0:
        raise ValueError(f"cost({units!r}): a cost is a whole number ≥ 0")
    return _marker(_COST, units)


def limit(rate: str) -> Callable[[F], F]:
    """Mark an endpoint: a limit per user, such as "3/min"; the policy's own for its path goes first."""
    parsed = parse_rate(rate)
    if parsed.unit != "requests":
        raise ValueError(f"limit({rate!r}): an endpoint's limit counts requests")
    return _marker(_LIMIT, parsed)


def lasting(duration: str | float | None) -> Callable[[F], F]:
    """Mark an endpoint: its answer, once it has begun in time, may last so long, counted from the
    request's arrival, such as "10m", and need not end with the request's deadline. None: for ever."""
    return _marker(_LASTING, math.inf if duration is None else parse_duration(duration))


def cancel_on_disconnect(endpoint: F) -> F:
    """Mark an endpoint: its handler is cancelled when its caller leaves, and not only what it waits
    for at vendors. For handlers that may be cut off anywhere; put it nearest to the function."""
    return _marker(_CANCEL, True)(endpoint)


def _marker(name: str, value: object) -> Callable[[F], F]:
    def mark(endpoint: F) -> F:
        setattr(endpoint, name, value)
        return endpoint

    return mark


def normalised(path: str) -> str:
    """A path as templates say it: "/items/{id:int}" is "/items/{id}"."""
    return _CONVERTOR.sub(r"{\1}", path)


@dataclass(frozen=True, slots=True)
class _Place:
    """One route: how it matches, and what is there, a leaf or the table of a mounted application."""

    matches: Callable[[Scope], tuple[Match, Scope]]
    first: str | None
    leaf: Matched
    below: _Table | None


class _Table:
    """The routes of one router, sorted by their first segment; those without one stand everywhere."""

    def __init__(self, routes: Sequence[BaseRoute], prefix: str) -> None:
        self.places = [_place(route, prefix) for route in _flattened(routes) if _is_http(route)]
        self._by_first = {
            first: [place for place in self.places if place.first in (first, None)]
            for first in {place.first for place in self.places}
        }
        self._elsewhere = self._by_first.get(None, [])

    def find(self, scope: Scope) -> Matched | None:
        partial: Matched | None = None
        first = get_route_path(scope).lstrip("/").partition("/")[0]
        for place in self._by_first.get(first, self._elsewhere):
            match, child = place.matches(scope)
            if match is Match.FULL:
                return place.below.find({**scope, **child}) if place.below else place.leaf
            if match is Match.PARTIAL and partial is None:
                partial = place.leaf
        return partial

    def templates(self) -> Iterable[str]:
        for place in self.places:
            yield from place.below.templates() if place.below else (place.leaf.template,)


class Routes:
    """The routes of an application, read again when one was added or removed."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._table: _Table | None = None
        self._lists: list[tuple[Sequence[BaseRoute], int]] = []

    def find(self, scope: Scope) -> Matched | None:
        """The route of a request, or None when none matches."""
        return self._current().find(scope)

    def templates(self) -> set[str]:
        """Every template there is."""
        return set(self._current().templates())

    def _current(self) -> _Table:
        routes = self._app.routes
        known = self._lists
        if (
            self._table is None
            or known[0][0] is not routes
            or any(len(sequence) != length for sequence, length in known)
        ):
            self._lists = [(sequence, len(sequence)) for sequence in _sequences(routes)]
            self._table = _Table(routes, "")
        return self._table


def _sequences(routes: Sequence[BaseRoute]) -> Iterable[Sequence[BaseRoute]]:
    """Every list of routes that makes up a router, its own first."""
    yield routes
    for route in routes:
        inner = getattr(route, "original_router", route)
        below = getattr(inner, "routes", None)
        if below is not None:
            yield from _sequences(below)


def _flattened(routes: Sequence[BaseRoute]) -> Iterable[Any]:
    # An application of FastAPI has imported it; ours need not.
    contexts = getattr(sys.modules.get("fastapi.routing"), "iter_route_contexts", None)
    return contexts(routes) if contexts is not None else routes


def _is_http(route: Any) -> bool:
    return not isinstance(getattr(route, "original_route", route), WebSocketRoute)


def _place(route: Any, prefix: str) -> _Place:
    original = getattr(route, "original_route", route)
    path: str | None = getattr(route, "path_format", None) or getattr(route, "path", None)
    if isinstance(original, Mount):
        path = (path or "").removesuffix("/{path}")
    template = prefix + (path or "")
    below = None
    if isinstance(original, (Mount, Host)) and route.routes:
        below = _Table(route.routes, template)
    endpoint = getattr(route, "endpoint", None)
    leaf = Matched(
        template or "/",
        _mark(endpoint, _COST, 1),
        _mark(endpoint, _LIMIT, None),
        _mark(endpoint, _LASTING, None),
        _mark(endpoint, _CANCEL, False),
    )
    return _Place(route.matches, _first(path), leaf, below)


def _first(path: str | None) -> str | None:
    """The first segment of a path, or None where it can be anything."""
    segment = (path or "{").lstrip("/").partition("/")[0]
    return None if "{" in segment or not path else segment


def _mark(endpoint: Any, name: str, default: Any) -> Any:
    while isinstance(endpoint, functools.partial) and not hasattr(endpoint, name):
        endpoint = endpoint.func
    return getattr(endpoint, name, default)
