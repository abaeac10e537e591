"""Refuses outside of everything whoever is known to be over a limit.

A flood from one caller is then answered before it takes a place in the pod and before the application's
middleware runs. It is the same answer, from the same numbers, that the gate inside would give; it only
comes without what the middleware would add. So whatever may make a difference goes inside:

    websockets; requests of other origins, which need the headers of CORS; whoever carries a header that
    matters to admission; a caller that cannot be told without waiting; a path of no route, which may be
    a page of the middleware's own; limits that are watched; a pod that is leaving, whose answers end
    their connections; and everything, once any middleware has been seen to change a request's path

What has been found out on the way is handed on in the scope, so that nobody finds it out twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from headworks.current import ROUTE
from headworks.fairness.gate import GIVEN, Fairness, Given, place_of
from headworks.fairness.headers import fields
from headworks.fairness.limits import Asks
from headworks.fairness.refusal import judged
from headworks.fairness.routes import Matched, Routes
from headworks.identity import Identifier
from headworks.problem import Headers, render
from headworks.telemetry import Served, Telemetry
from headworks.verdict import Verdict

Known = Callable[[Asks], Verdict | None]
"""The refusal of these asks from memory, None where there is none: `DenyCache.known_nowait`."""

_ORIGIN: Final = b"origin"


class KnownRefusals:
    """Around admission.

    known       what the store has refused and would still
    fairness    the shares, whose rules and events these are
    routes      the application's routes
    identifier  tells who is asking
    telemetry   hears of every refusal, and of the answer
    inside      names of headers, in lower case, whose requests are admission's to judge
    leaving     whether the pod is about to end
    bounded     awaits a refusal's way to its client, and raises `TimeoutError` when that takes too long
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        known: Known,
        fairness: Fairness,
        routes: Routes,
        identifier: Identifier,
        telemetry: Telemetry,
        inside: Iterable[bytes],
        leaving: Callable[[], bool],
        bounded: Callable[[Awaitable[None]], Awaitable[None]],
    ) -> None:
        self.app = app
        self._known, self._fairness, self._routes = known, fairness, routes
        self._identifier, self._telemetry = identifier, telemetry
        self._inside = frozenset({_ORIGIN, *inside})
        self._leaving, self._bounded = leaving, bounded

    # No coroutine of its own: nearly every request only passes.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http" or self._fairness.rewritten:
            return self.app(scope, receive, send)
        identity = self._identifier.identify(scope)
        rules, matched = self._fairness.rules, self._route(scope)
        if matched is None or self._identifier.seen(scope, rules.callers) is None:
            return self.app(scope, receive, send)
        scope[ROUTE] = matched.template
        asked = rules.limits.asks(identity, matched)
        given = (rules, place_of(scope), matched, asked)
        scope[GIVEN] = tuple.__new__(Given, given)  # half the time of its own constructor
        if asked.shadow or (verdict := self._known(asked.asks)) is None or not self._ours(scope):
            return self.app(scope, receive, send)
        refused = judged(verdict, asked, identity.criticality, self._telemetry)
        assert refused is not None, "what is remembered is refusals"
        return self._answer(
            scope, send, render(refused, fields(rules.dialect, verdict, refused.retry_after)), matched
        )

    def _route(self, scope: Scope) -> Matched | None:
        try:
            return self._routes.find(scope)
        except Exception:  # of the application's own rules: to be raised inside, where it is answered
            return None

    def _ours(self, scope: Scope) -> bool:
        """Whether the refusal may be answered here."""
        for name, _ in scope["headers"]:
            if name in self._inside:
                return False
        return not self._leaving()

    async def _answer(
        self, scope: Scope, send: Send, answer: tuple[int, Headers, bytes], matched: Matched
    ) -> None:
        loop = asyncio.get_running_loop()
        began, status = loop.time(), answer[0]
        try:
            await self._bounded(_sent(send, *answer))
        except TimeoutError:  # the client does not read: drop what is buffered, and the connection
            transport = getattr(getattr(send, "__self__", None), "transport", None)
            if transport is not None:
                transport.abort()
        finally:
            seconds = loop.time() - began
            self._telemetry.emit(Served(matched.template, scope["method"], status, seconds))


async def _sent(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
