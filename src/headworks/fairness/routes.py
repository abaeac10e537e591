"""Which route a request or websocket will take, known before it is routed, to ask limits first.

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, get_args

from starlette._utils import get_route_path
from starlette.endpoints import HTTPEndpoint
from starlette.routing import BaseRoute, Host, Match, Mount, Route, WebSocketRoute
from starlette.types import Scope

from headworks.limits.shapes import Bucket, Shape, Window
from headworks.policy.units import Rate, parse_duration, parse_rate

F = TypeVar("F", bound=Callable[..., Any])

Place = tuple[str, str, str]
"""Method, path and root path: what the route of an HTTP request is found by."""
Whose = Literal["user", "tenant", "all"]
"""Whose requests a limit counts together."""

_COST: Final = "__headworks_cost__"
_LIMITS: Final = "__headworks_limits__"
_EXEMPT: Final = "__headworks_exempt__"
_LASTING: Final = "__headworks_lasting__"
_CANCEL: Final = "__headworks_cancel_on_disconnect__"
_CONVERTOR = re.compile(r"{(\w+):\w+}")
_FRAMEWORKS: Final = ("starlette.routing", "fastapi.routing")
"""Whose way to match a route is known to look at nothing but type, method and path."""
REMEMBERED: Final = 4096
"""Methods and paths whose route is remembered."""


@dataclass(frozen=True, slots=True, eq=False)
class Matched:
    """What limits need to know of a route; one object per route, compared by identity.

    template  its full path with parameters by name, prefixes of routers and mounts included
    cost      units one request takes, ≥ 0
    limits    those marked on the endpoint itself
    exempt    marked as asking no limits
    lasting   seconds its answer may last once it has begun; None: to the request's deadline
    cancel    whether the handler is cancelled when its caller leaves
    """

    template: str
    cost: int = 1
    limits: tuple[tuple[Rate, Whose], ...] = ()
    exempt: bool = False
    lasting: float | None = None
    cancel: bool = False


def cost(units: int) -> Callable[[F], F]:
    """Mark an endpoint: one request takes `units` (≥ 0) of every limit instead of one."""
    if isinstance(units, bool) or not isinstance(units, int) or units < 0:
        raise ValueError(f"cost({units!r}): a cost is a whole number ≥ 0")
    return lambda endpoint: _marked(endpoint, _COST, units)


def limit(rate: str, *, scope: Whose = "user") -> Callable[[F], F]:
    """Mark an endpoint: a limit such as "3/min"; what the policy says of its path goes in its place.

    scope  whose requests it counts together: each user's, each tenant's, or all users'

    Several may be marked, of different scopes or periods.
    """
    parsed = parse_rate(rate)
    if parsed.unit != "requests":
        raise ValueError(f"limit({rate!r}): an endpoint's limit counts requests")
    shape_of(parsed)  # one without a shape is to be heard of now, not by whoever asks first
    if scope not in get_args(Whose):
        raise ValueError(f"limit(scope={scope!r}): a scope is one of {', '.join(get_args(Whose))}")

    def mark(endpoint: F) -> F:
        before: tuple[tuple[Rate, Whose], ...] = getattr(endpoint, _LIMITS, ())
        if any((other.period, whose) == (parsed.period, scope) for other, whose in before):
            raise ValueError(f"limit({rate!r}): there is a limit of this scope and period already")
        return _marked(endpoint, _LIMITS, ((parsed, scope), *before))

    return mark


def exempt(endpoint: F) -> F:
    """Mark an endpoint: its requests ask no limits, and count for none."""
    return _marked(endpoint, _EXEMPT, True)


def lasting(duration: str | float | None) -> Callable[[F], F]:
    """Mark an endpoint: its answer, once it has begun in time, may last so long, counted from the
    request's arrival, such as "10m", and need not end with the request's deadline. None: for ever."""
    seconds = math.inf if duration is None else parse_duration(duration)
    return lambda endpoint: _marked(endpoint, _LASTING, seconds)


def cancel_on_disconnect(endpoint: F) -> F:
    """Mark an endpoint: its handler is cancelled when its caller leaves, and not only what it waits
    for at vendors. For handlers that may be cut off anywhere; put it nearest to the function."""
    return _marked(endpoint, _CANCEL, True)


def _marked(endpoint: F, name: str, value: object) -> F:
    setattr(endpoint, name, value)
    return endpoint


def shape_of(rate: Rate) -> Shape:
    """The shape of a rate: "10/min" is a window, "10/min burst 3" a bucket; `ValueError` without one."""
    if rate.burst is None:
        return Window.of(rate.amount, rate.period)
    return Bucket.of(rate.amount, rate.period, burst=rate.burst)


def normalised(path: str) -> str:
    """A path as templates say it: "/items/{id:int}" is "/items/{id}"."""
    return _CONVERTOR.sub(r"{\1}", path)


def place_of(scope: Scope) -> Place:
    """What an HTTP request's route is found by."""
    return scope["method"], scope["path"], scope.get("root_path", "")


@dataclass(frozen=True, slots=True)
class _Place:
    """One route: how it matches, and what is there, a leaf or the table of a mounted application.

    methods  leaves of a class that has an endpoint per method, None where one stands for all
    plain    whether it matches depends on type, method and path alone: no host, no rule of its own
    fixed    its path has no parameters
    """

    matches: Callable[[Scope], tuple[Match, Scope]]
    first: str | None
    leaf: Matched
    methods: Mapping[str, Matched] | None
    below: _Table | None
    plain: bool
    fixed: bool

    def found(self, scope: Scope) -> Matched:
        if self.methods is None or scope["type"] != "http":
            return self.leaf
        return self.methods.get(scope["method"], self.leaf)


class _Table:
    """The routes of one router, sorted by their first segment; those without one stand everywhere."""

    def __init__(self, routes: Sequence[BaseRoute], prefix: str) -> None:
        self.places = [_place(route, prefix) for route in _flattened(routes)]
        self._by_first = {
            first: [place for place in self.places if place.first in (first, None)]
            for first in {place.first for place in self.places}
        }
        self._elsewhere = self._by_first.get(None, [])
        self.known: dict[Place, Matched] = {}

    def find(self, scope: Scope) -> Matched | None:
        """The route; one without parameters that was found before by a single look.

        What is remembered must be as true of the next request: the path is the whole of a template,
        the match full, and no route before it looks at more than what is remembered by.
        """
        if scope["type"] != "http":
            return self.search(scope, None)
        asked = place_of(scope)
        return self.known.get(asked) or self.search(scope, asked)

    def search(self, scope: Scope, asked: Place | None) -> Matched | None:
        """The same of one that is not `known`; `asked` None: and is not to be."""
        partial: Matched | None = None
        plain = asked is not None
        first = get_route_path(scope).lstrip("/").partition("/")[0]
        for place in self._by_first.get(first, self._elsewhere):
            match, child = place.matches(scope)
            plain = plain and place.plain
            if match is Match.FULL:
                if place.below:
                    return place.below.find({**scope, **child})
                found = place.found(scope)
                if plain and place.fixed and asked is not None:
                    if len(self.known) >= REMEMBERED:  # roots and odd methods are not ours to bound
                        self.known.clear()
                    self.known[asked] = found
                return found
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

    def find(self, scope: Scope, place: Place | None = None) -> Matched | None:
        """The route of a request, or None when none matches.

        place  what `place_of` says of it, where that is known already
        """
        table = self._table
        if table is None or self._app.router.routes is not self._lists[0][0]:
            table = self._read()
        for sequence, length in self._lists:
            if len(sequence) != length:
                table = self._read()
                break
        if place is None:
            return table.find(scope)
        return table.known.get(place) or table.search(scope, place)

    def templates(self) -> set[str]:
        """Every template there is."""
        return set(self._read().templates())

    def _read(self) -> _Table:
        routes = self._app.router.routes
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
    leaf, methods = _leaf(template or "/", endpoint), None
    if isinstance(endpoint, type) and issubclass(endpoint, HTTPEndpoint):
        methods = {name: _leaf(template or "/", handler, leaf) for name, handler in _handlers(endpoint)}
    matches = route.matches
    plain = (
        isinstance(original, (Route, WebSocketRoute, Mount))
        and getattr(matches, "__module__", None) in _FRAMEWORKS
    )
    fixed = path is not None and "{" not in path and isinstance(original, Route)
    return _Place(matches, _first(path), leaf, methods, below, plain, fixed)


def _leaf(template: str, endpoint: Any, outer: Matched | None = None) -> Matched:
    """What an endpoint is marked with; where it is not, what the class around it is."""
    outer = outer or Matched(template)
    return Matched(
        template,
        _mark(endpoint, _COST, outer.cost),
        _mark(endpoint, _LIMITS, outer.limits),
        _mark(endpoint, _EXEMPT, outer.exempt),
        _mark(endpoint, _LASTING, outer.lasting),
        _mark(endpoint, _CANCEL, outer.cancel),
    )


def _handlers(endpoint: type[HTTPEndpoint]) -> Iterable[tuple[str, Any]]:
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        handler = getattr(endpoint, method.lower(), None)
        if handler is None and method == "HEAD":
            handler = getattr(endpoint, "get", None)
        if handler is not None:
            yield method, handler


def _first(path: str | None) -> str | None:
    """The first segment of a path, or None where it can be anything."""
    segment = (path or "{").lstrip("/").partition("/")[0]
    return None if "{" in segment or not path else segment


def _mark(endpoint: Any, name: str, default: Any) -> Any:
    """A marker of an endpoint: a function, a method, a partial of one, a class, or an object that is
    called, on which it may stand at `__call__`."""
    while isinstance(endpoint, functools.partial) and not hasattr(endpoint, name):
        endpoint = endpoint.func
    if not hasattr(endpoint, name) and not isinstance(endpoint, type):
        endpoint = getattr(type(endpoint), "__call__", endpoint)  # noqa: B004  # what, not whether
    return getattr(endpoint, name, default)
