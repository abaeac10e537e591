"""The way in, up to the application: every step in its order, none skipped.

probes           are answered
known refusals   whoever is known to be over a limit is told so, and takes no place
admission        a place in the pod, a turn in the line for one, or a refusal
the question     of the caller's limits, where no middleware could make a difference to it
the application  its middleware, and inside of that fairness, which asks where nobody has yet
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Final, Protocol

from starlette._utils import get_route_path
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from headworks.admission import AdmissionGate, Entry, Slot
from headworks.current import ROUTE, current
from headworks.fairness import Ahead, FairnessGate
from headworks.health.probes import PATHS
from headworks.problem import Whole
from headworks.store.protocol import Store
from headworks.telemetry import Served, Telemetry
from headworks.verdict import Verdict

TRANSPARENT: Final[tuple[object, ...]] = (FairnessGate, CORSMiddleware, GZipMiddleware)
"""Middleware that refuses nobody whom `Ahead` has looked at: without an origin, CORS has no word."""
FRAMEWORKS: Final = ("starlette.applications", "fastapi.applications")
"""Whose applications are known: what their own call does, and what they put around middleware."""
LISTENING: Final = 1.0
"""Seconds after which an application's call is looked at again."""


def clear(middleware: list[Middleware], build: Callable[[], ASGIApp]) -> bool:
    """Whether a request that is let in is sure to be asked its limits, whatever else is built around."""
    return all(one.cls in TRANSPARENT for one in middleware) and _of_frameworks(build)


def plain(app: Starlette) -> bool:
    """Whether the application's own call would only lead to its door: nothing is overridden or patched,
    there is no root path to set, and nobody has FastAPI trace requests."""
    tracing = getattr(app, "_native_telemetry", None)
    if getattr(app, "root_path", None) or (tracing is not None and tracing.enabled()):
        return False
    calls = (vars(kind).get("__call__") for kind in type(app).__mro__)
    return all(_of_frameworks(call) for call in calls if call is not None)


def _of_frameworks(function: object) -> bool:
    """Whether it was written there: `functools.wraps` copies a module's name, but not its globals, and
    a proxy shows those of what it stands for, but is no function."""
    function = getattr(function, "__func__", function) if type(function) is MethodType else function
    return type(function) is FunctionType and function.__globals__["__name__"] in FRAMEWORKS


class Server(Protocol):
    """Who is told how a request goes on."""

    def go_on(self, cycle: Any, door: Door, found: Whole | ASGIApp) -> None:
        """It is refused so, or it is for this application."""
        ...


def _known(answer: Whole) -> Callable[[Scope], Awaitable[Whole | None]]:
    """An answer that is known, as one that has still to be asked for."""

    async def first(scope: Scope) -> Whole | None:
        return answer

    return first


class Door:
    """Outside of everything.

    app        the application that it is the middleware of
    probes     answers the probes and hands what is none of them to the application it is made of
    admission  the pod's gate around the application
    ahead      fairness's word ahead of the application
    clear      whether the store may be asked there, see `clear`
    store      decides
    telemetry  hears of every answer that admission does not
    """

    def __init__(
        self,
        app: Starlette,
        *,
        probes: Callable[[ASGIApp], ASGIApp],
        admission: AdmissionGate,
        ahead: Ahead,
        clear: bool,
        store: Store,
        telemetry: Telemetry,
    ) -> None:
        self.app = admission  # so called by whoever walks down a stack of middleware
        self._app, self._probes = app, probes(admission)
        self._admission, self._ahead = admission, ahead
        self._store, self._telemetry = store, telemetry
        self._next: ASGIApp = self._ask if clear else admission
        self._looked, self._plain = -math.inf, False

    # No coroutine of its own: nearly every request only passes.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return self._admission(scope, receive, send)
        found = self.begin(scope)
        if isinstance(found, tuple):
            return self.refuse(found, scope, receive, send)
        return found(scope, receive, send)

    def begin(self, scope: Scope) -> Whole | ASGIApp:
        """The refusal of an HTTP request where it is known at once; else who goes on with it. A pod that
        leaves makes all its answers inside, since they end their connections.

        Whoever sends the refusal says so to `refused`.
        """
        if scope["path"].endswith(PATHS) and get_route_path(scope) in PATHS:
            return self._probes
        given = self._ahead.look(scope)
        if given is None or self._admission.answers.leaving:
            return self._admission
        return self._ahead.known(given) or self._next

    def put(self, scope: Scope, found: ASGIApp, server: Server, cycle: Any) -> bool:
        """Where `begin` has `found` that the store is to be asked first, ask it on behalf of a server
        that has no task for this request yet, and is told of `cycle` how it goes on, once: now, or in a
        later turn of the loop. False where there is nothing to ask, and `found` goes on."""
        if found is not self._next or found is self._admission:
            return False
        entry = self._admission.enter(scope)
        if isinstance(entry.place, Slot):
            to = partial(self._heard, scope, entry, server, cycle)
            try:
                if self._store.put(self._ahead.question(scope), to):
                    return True
            except BaseException:
                self._admission.turn_back(entry, scope, 500)
                raise
        server.go_on(cycle, self, partial(self._asked, entry))
        return True

    def _heard(self, scope: Scope, entry: Entry, server: Server, cycle: Any, verdict: Verdict) -> None:
        """The verdict on a request that was put. A place returns before the refusal is sent: what comes
        next on its connection may begin with that."""
        try:
            refusal = self._ahead.answer(scope, entry, verdict)
        except Exception as error:
            self._admission.turn_back(entry, scope, 500)
            server.go_on(cycle, self, _raising(error))
            return
        if refusal is not None and not self._admission.answers.leaving:
            self._admission.turn_back(entry, scope, refusal[0])
            server.go_on(cycle, self, refusal)
            return
        try:
            first = None if refusal is None else _known(refusal)
            server.go_on(cycle, self, partial(self._admission.go_on, entry, first))
        except BaseException:
            self._admission.turn_back(entry, scope, 0)
            raise

    def refused(self, scope: Scope, status: int, seconds: float) -> None:
        """A refusal of `begin` has been sent, or given up."""
        self._telemetry.emit(Served(scope[ROUTE], scope["method"], status, seconds))

    def telling(self, refusal: Whole) -> ASGIApp:
        """What sends a refusal that has been accounted for, to a client that has to be waited for."""

        async def tell(scope: Scope, receive: Receive, send: Send) -> None:
            await self._admission.tell(send, *refusal)

        return tell

    def straight(self, app: object, scope: Scope, now: float) -> bool:
        """Whether a server of `app` may come here at once, instead of to the application's own call,
        which would only set what this sets: not where `app` is something around the application, though
        it show all that the application has.

        now  the loop's time
        """
        if app is not self._app:
            return False
        if now - self._looked > LISTENING:
            self._looked, self._plain = now, plain(self._app)
        scope["app"] = self._app
        return self._plain

    async def refuse(self, refusal: Whole, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a refusal of `begin`, and say so."""
        now = self._admission.answers.now
        began = now()
        try:
            await self._admission.tell(send, *refusal)
        finally:
            self.refused(scope, refusal[0], now() - began)

    def _ask(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return self._asked(self._admission.enter(scope), scope, receive, send)

    def _asked(self, entry: Entry, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return self._admission.go_on(entry, self._first, scope, receive, send)

    async def _first(self, scope: Scope) -> Whole | None:
        """Ask once there is a place, and before anything else is made of the request.

        The gate inside asks itself where the policy has changed since, as in a line, or where the store
        has raised: what is raised there is answered.
        """
        if not self._ahead.stands(scope):
            return None
        try:
            verdict = await self._store.ask(self._ahead.question(scope))
        except Exception:
            return None
        return self._ahead.answer(scope, current(), verdict)


def _raising(error: Exception) -> ASGIApp:
    """For the server to answer as it does when its application raises."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    return app
