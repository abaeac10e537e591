"""The innermost middleware: asks the store one question, and turns refusals into answers.

It stands inside CORS and authentication, so that its answers carry their headers, and around the
framework's own exception handlers, so that an application that handles an error itself is left to.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headworks.current import current
from headworks.errors import QuotaExceeded, Refused
from headworks.fairness.headers import fields
from headworks.fairness.limits import Asks, Limits, near
from headworks.fairness.routes import Matched, Routes
from headworks.fairness.translate import refused_behind
from headworks.identity import Callers, Identifier, Identity
from headworks.problem import TRY_AGAIN_LATER, Headers, refuse_websocket, render
from headworks.store.protocol import Ask, Question, Store
from headworks.telemetry import Decided, Shadowed, Telemetry
from headworks.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Rules:
    """What one policy says of fairness. A request goes by the rules it began with, wholly.

    limits   what to ask
    callers  how callers are told apart
    dialect  "draft-11", "x-ratelimit" or "off": how answers tell a caller its limits
    """

    limits: Limits
    callers: Callers
    dialect: str


@dataclass(slots=True)
class Ticket:
    """What a request was asked for, in earnest and only to see, and the latest verdict on it."""

    asks: Asks = ()
    shadow: Asks = ()
    verdict: Verdict | None = None


class Fairness:
    """Each caller's share: one atomic question to the store, nothing taken by a refusal.

    rules       the policy's; may be exchanged while requests are served
    store       decides
    identifier  tells who is asking, with the resolver's help
    telemetry   hears every decision
    """

    def __init__(
        self, rules: Rules, *, store: Store, identifier: Identifier, telemetry: Telemetry
    ) -> None:
        self.rules = rules
        self._store, self._identifier, self._telemetry = store, identifier, telemetry
        self._watching: set[asyncio.Task[None]] = set()
        self.ticket: ContextVar[Ticket | None] = ContextVar("headworks_ticket", default=None)

    async def admit(self, scope: Scope, matched: Matched | None, ticket: Ticket, rules: Rules) -> None:
        """Ask the caller's and the route's limits together; `QuotaExceeded` if one is used up."""
        identity = await self._identifier.resolve(scope, rules.callers)
        _tell(identity)
        ticket.asks, ticket.shadow = rules.limits.asks(identity, matched)
        await self._ask(ticket, ticket.asks, ticket.shadow)

    async def charge(self, units: int) -> None:
        """Take `units` (≥ 0) more of the current request's limits; all of it, or `QuotaExceeded`."""
        ticket = self.ticket.get()
        if ticket is None:
            raise RuntimeError("charge() belongs into a request that the limits were asked for")
        if isinstance(units, bool) or not isinstance(units, int) or units < 0:
            raise ValueError(f"charge({units!r}): a charge is a whole number ≥ 0")
        await self._ask(ticket, _costing(ticket.asks, units), _costing(ticket.shadow, units))

    async def _ask(self, ticket: Ticket, asks: Asks, shadow: Asks = ()) -> None:
        for ask in shadow:
            self._watch(ask)
        if not asks:
            return
        verdict = ticket.verdict = await self._store.ask(Question(asks))
        tightest = verdict.tightest
        rule = tightest.name if tightest else ""
        reason = "" if verdict.allowed else QuotaExceeded.reason
        name = current().criticality.name.lower()
        close = near(asks, verdict)
        self._telemetry.emit(Decided("fairness", verdict.allowed, reason, rule, name, close))
        if not verdict.allowed:
            if tightest is None:
                detail = "the shared store is away, and without it this limit lets nobody through"
            else:
                detail = f"{rule} allows {tightest.limit} per {tightest.window:g} s"
                if verdict.degraded:
                    detail += "; while the shared store is away, this pod keeps to its own part of it"
            raise QuotaExceeded(
                detail, retry_after=verdict.retry_after, limit=rule or None, verdict=verdict
            )

    def _watch(self, ask: Ask) -> None:
        """Ask a limit without waiting for it. It is a question of its own, so that it makes no other
        refuse, and begun first, so that it travels with the one that is waited for."""
        task = asyncio.get_running_loop().create_task(self._shadow(ask), name="headworks: shadow")
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    async def _shadow(self, ask: Ask) -> None:
        verdict = await self._store.ask(Question((ask,)))
        self._telemetry.emit(Shadowed("fairness", verdict.allowed, ask.name))

    async def drain(self) -> None:
        """Wait for the limits that are only watched; the store bounds how long."""
        if self._watching:
            await asyncio.wait(self._watching)


class FairnessGate:
    """The middleware itself.

    app       the rest of the application
    fairness  the shares
    routes    the application's routes
    """

    def __init__(self, app: ASGIApp, *, fairness: Fairness, routes: Routes) -> None:
        self.app = app
        self._fairness, self._routes = fairness, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        matched = self._routes.find(scope)
        rules, ticket = self._fairness.rules, Ticket()
        answer = (_Answer if scope["type"] == "http" else _Socket)(scope, send, rules.dialect, ticket)
        token = None
        try:
            if matched is not None:
                _take_up(matched)
            if not _is_preflight(scope):
                await self._fairness.admit(scope, matched, ticket, rules)
                token = self._fairness.ticket.set(ticket)
            await self.app(scope, receive, answer.send)
        except Exception as error:
            refused = refused_behind(error)
            if refused is None or not await answer.refuse(refused):
                raise
        finally:
            if token is not None:
                self._fairness.ticket.reset(token)


class _Answer:
    """What is sent to the client; its head tells the caller's limits, once."""

    head = "http.response.start"

    def __init__(self, scope: Scope, send: Send, dialect: str, ticket: Ticket) -> None:
        self._scope, self._send, self._dialect, self._ticket = scope, send, dialect, ticket
        self.begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == self.head:
            self.begun = True
            ours = fields(self._dialect, self._ticket.verdict)
            if ours:
                message = {**message, "headers": _merged(message.get("headers", ()), ours)}
        await self._send(message)

    async def refuse(self, refused: Refused) -> bool:
        """Answer with the refusal, if it is not too late for one."""
        if self.begun:
            return False
        status, headers, body = render(refused, self._fields(refused))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
        return True

    def _fields(self, refused: Refused) -> Headers:
        return fields(self._dialect, self._ticket.verdict, refused.retry_after)


class _Socket(_Answer):
    """The same for a websocket: asked when it connects, and told in the head that accepts it."""

    head = "websocket.accept"
    ended = False

    async def send(self, message: Message) -> None:
        if message["type"] in ("websocket.close", "websocket.http.response.start"):
            self.ended = True
        await super().send(message)

    async def refuse(self, refused: Refused) -> bool:
        if self.ended:
            return False
        if self.begun:
            await self._send(
                {"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": refused.reason}
            )
        else:
            await refuse_websocket(self._scope, self._send, refused, self._fields(refused))
        return True


def _costing(asks: Asks, units: int) -> Asks:
    return tuple(ask._replace(cost=units) for ask in asks)


def _merged(theirs: Headers, ours: Headers) -> Headers:
    names = {name for name, _ in ours}
    return [(name, value) for name, value in theirs if name.lower() not in names] + ours


def _is_preflight(scope: Scope) -> bool:
    """Whether this is a browser's question before a cross-origin request, which asks no limits."""
    if scope.get("method") != "OPTIONS":
        return False
    names = {name for name, _ in scope["headers"]}
    return b"origin" in names and b"access-control-request-method" in names


def _take_up(matched: Matched) -> None:
    """What the route says of the request; `CallerLeft` where nobody is left whom it would be for."""
    standing = current()
    standing.route, standing.lasting = matched.template, matched.lasting
    if matched.cancel and standing.caller is not None:
        standing.caller.take_along()


def _tell(identity: Identity) -> None:
    """What the resolver found out is what everyone downstream shall know."""
    standing = current()
    standing.tenant, standing.weight = identity.tenant, identity.weight
    standing.rank(identity.criticality, known=identity.known)
