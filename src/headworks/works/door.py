"""The way in, up to the application: every step in its order, none skipped.

probes           are answered
known refusals   whoever is known to be over a limit is told so, and takes no place
admission        a place in the pod, a turn in the line for one, or a refusal
the question     of the caller's limits, where no middleware could make a difference to it
the application  its middleware, and inside of that fairness, which asks where nobody has yet
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from headworks.admission import AdmissionGate, Slot
from headworks.current import ROUTE
from headworks.fairness import Ahead, FairnessGate
from headworks.health.probes import PATHS
from headworks.problem import Whole
from headworks.telemetry import Served, Telemetry

TRANSPARENT: Final[tuple[object, ...]] = (FairnessGate, CORSMiddleware, GZipMiddleware)
"""Middleware that refuses nobody whom `Ahead` has looked at: without an origin, CORS has no word."""
ENTRANCES: Final = ("starlette.applications", "fastapi.applications")
"""Where the calls of applications are written that are known to do nothing else than `Door.straight`."""
LISTENING: Final = 1.0
"""Seconds after which FastAPI is asked again whether it traces requests."""


def clear(middleware: list[Middleware]) -> bool:
    """Whether a request that is let in is sure to be asked its limits."""
    return all(one.cls in TRANSPARENT for one in middleware)


class Door:
    """Outside of everything.

    app        the application that it is the middleware of
    probes     answers the probes and hands what is none of them to the application it is made of
    admission  the pod's gate around the application
    ahead      fairness's word ahead of the application
    telemetry  hears of every answer that admission does not
    """

    def __init__(
        self,
        app: Starlette,
        *,
        probes: Callable[[ASGIApp], ASGIApp],
        admission: AdmissionGate,
        ahead: Ahead,
        telemetry: Telemetry,
    ) -> None:
        self._app, self._probes = app, probes(admission)
        self._admission, self._ahead, self._telemetry = admission, ahead, telemetry
        self._next: ASGIApp = self._ask if clear(app.user_middleware) else admission
        self._plain = getattr(type(app).__call__, "__module__", "") in ENTRANCES
        self._asked, self._traced = -math.inf, False

    # No coroutine of its own: nearly every request only passes.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return self._admission(scope, receive, send)
        found = self.begin(scope)
        if isinstance(found, tuple):
            return self._refuse(scope, send, found)
        return found(scope, receive, send)

    def begin(self, scope: Scope) -> Whole | ASGIApp:
        """The refusal of an HTTP request where it is known at once; else who goes on with it.

        Whoever sends the refusal says so to `refused`.
        """
        if scope["path"].endswith(PATHS):
            return self._probes
        given = self._ahead.look(scope)
        if given is None:
            return self._admission
        return self._ahead.known(given) or self._next

    def refused(self, scope: Scope, status: int, seconds: float) -> None:
        """A refusal of `begin` has been sent, or given up."""
        self._telemetry.emit(Served(scope[ROUTE], scope["method"], status, seconds))

    def straight(self, scope: Scope) -> bool:
        """Whether a server may come here at once: the application's own call would only set what this
        sets. FastAPI's sees to its tracing as well, where somebody traces."""
        app = self._app
        if not self._plain or getattr(app, "root_path", None):
            return False
        now = self._admission.now()
        if now - self._asked > LISTENING:
            self._asked, tracing = now, getattr(app, "_native_telemetry", None)
            self._traced = tracing is not None and bool(tracing.enabled())
        scope["app"] = app
        return not self._traced

    async def _refuse(self, scope: Scope, send: Send, refusal: Whole) -> None:
        began = asyncio.get_running_loop().time()
        try:
            await self._admission.tell(send, *refusal)
        finally:
            self.refused(scope, refusal[0], asyncio.get_running_loop().time() - began)

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask once there is a place, and before anything else is made of the request."""
        admission = self._admission
        entry = admission.enter(scope)
        if isinstance(entry.place, Slot):
            passes, status = False, 0
            try:
                refusal = await self._ahead.ask(scope)
                if refusal is None:
                    passes = True
                else:
                    status = refusal[0]
                    await admission.tell(send, *refusal)
            finally:
                if not passes:
                    admission.turn_back(entry, scope, status)
            if not passes:
                return
        await admission.go_on(entry, scope, receive, send)
