"""The innermost middleware: asks the store one question, and turns refusals into answers.

It stands inside CORS and authentication, so that its answers carry their headers, and around the
framework's own exception handlers, so that an application that handles an error itself is left to.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headworks.current import current
from headworks.errors import QuotaExceeded, Refused
from headworks.fairness.headers import fields
from headworks.fairness.limits import Limits, near
from headworks.fairness.routes import Matched, Routes
from headworks.fairness.translate import refused_behind
from headworks.identity import Identifier, Identity
from headworks.problem import Headers, render
from headworks.store.protocol import Ask, Question, Store
from headworks.telemetry import Decided, Telemetry
from headworks.verdict import Verdict


@dataclass(slots=True)
class Ticket:
    """What a request was asked for, and the latest verdict on it."""

    asks: tuple[Ask, ...] = ()
    verdict: Verdict | None = None


class Fairness:
    """Each caller's share: one atomic question to the store, nothing taken by a refusal.

    limits      what to ask
    dialect     "draft-11", "x-ratelimit" or "off": how answers tell a caller its limits
    store       decides
    identifier  tells who is asking, with the resolver's help
    telemetry   hears every decision
    """

    def __init__(
        self,
        limits: Limits,
        *,
        dialect: str,
        store: Store,
        identifier: Identifier,
        telemetry: Telemetry,
    ) -> None:
        self.dialect = dialect
        self._limits, self._store = limits, store
        self._identifier, self._telemetry = identifier, telemetry
        self.ticket: ContextVar[Ticket | None] = ContextVar("headworks_ticket", default=None)

    async def admit(self, scope: Scope, matched: Matched | None, ticket: Ticket) -> None:
        """Ask the caller's and the route's limits together; `QuotaExceeded` if one is used up."""
        identity = await self._identifier.resolve(scope)
        _tell(identity)
        ticket.asks = self._limits.asks(identity, matched)
        await self._ask(ticket, ticket.asks)

    async def charge(self, units: int) -> None:
        """Take `units` (≥ 0) more of the current request's limits; all of it, or `QuotaExceeded`."""
        ticket = self.ticket.get()
        if ticket is None:
            raise RuntimeError("charge() belongs into a request that the limits were asked for")
        if isinstance(units, bool) or not isinstance(units, int) or units < 0:
            raise ValueError(f"charge({units!r}): a charge is a whole number ≥ 0")
        await self._ask(ticket, tuple(ask._replace(cost=units) for ask in ticket.asks))

    async def _ask(self, ticket: Ticket, asks: tuple[Ask, ...]) -> None:
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
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        matched = self._routes.find(scope)
        ticket = Ticket()
        answer = _Answer(send, self._fairness.dialect, ticket)
        token = None
        try:
            if matched is not None:
                _take_up(matched)
            if not _is_preflight(scope):
                await self._fairness.admit(scope, matched, ticket)
                token = self._fairness.ticket.set(ticket)
            await self.app(scope, receive, answer.send)
        except Exception as error:
            refused = refused_behind(error)
            if refused is None or answer.begun:
                raise
            await answer.refuse(refused)
        finally:
            if token is not None:
                self._fairness.ticket.reset(token)


class _Answer:
    """What is sent to the client; its head tells the caller's limits, once."""

    def __init__(self, send: Send, dialect: str, ticket: Ticket) -> None:
        self._send, self._dialect, self._ticket = send, dialect, ticket
        self.begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            ours = fields(self._dialect, self._ticket.verdict)
            if ours:
                message = {**message, "headers": _merged(message.get("headers", ()), ours)}
        await self._send(message)

    async def refuse(self, refused: Refused) -> None:
        status, headers, body = render(refused)
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def _merged(theirs: Headers, ours: Headers) -> Headers:
    names = {name for name, _ in ours}
    return [(name, value) for name, value in theirs if name.lower() not in names] + ours


def _is_preflight(scope: Scope) -> bool:
    """Whether this is a browser's question before a cross-origin request, which asks no limits."""
    if scope["method"] != "OPTIONS":
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
