"""The innermost middleware: asks the store one question, and turns refusals into answers.

It stands inside CORS and authentication, so that its answers carry their headers, and around the
framework's own exception handlers, so that an application that handles an error itself is left to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headworks.current import Criticality, Current, current
from headworks.errors import QuotaExceeded, Refused
from headworks.fairness.headers import NAMES, fields
from headworks.fairness.limits import NOTHING, Asked, Limits
from headworks.fairness.refusal import judged
from headworks.fairness.routes import Matched, Place, Routes, place_of
from headworks.fairness.translate import refused_behind
from headworks.identity import Callers, Identifier, Identity
from headworks.problem import TRY_AGAIN_LATER, Headers, refuse_websocket, render, send_whole
from headworks.store.protocol import Ask, Question, Store
from headworks.telemetry import Shadowed, Telemetry
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


class Ticket:
    """What a request was asked for, by whom, and the latest verdict on it; kept in `Current`.

    cancel   its route ends with its caller
    telling  the head of its answer is still to be told of the verdict by whoever sends it: the store was
             asked ahead of the gate, and it is the application that answers
    """

    __slots__ = ("asked", "cancel", "dialect", "of", "telling", "verdict")

    def __init__(
        self, of: Fairness, dialect: str, asked: Asked, verdict: Verdict | None, cancel: bool
    ) -> None:
        self.of, self.dialect, self.asked, self.verdict = of, dialect, asked, verdict
        self.cancel, self.telling = cancel, False

    def head(self, message: Message) -> Message:
        """The head of an answer, with the caller's limits in place of what it says of them."""
        self.telling = False
        verdict = self.verdict
        if verdict is not None and verdict[0]:
            ours = self.asked.told(verdict)
        else:
            ours = fields(self.dialect, verdict)
        if not ours:
            return message
        headers = [*message.get("headers", ())]  # an iterable, to be read once
        for name, _ in headers:
            if name in NAMES:
                headers = _without(headers, {name for name, _ in ours})
                break
        headers += ours
        return {**message, "headers": headers}

    def refusing(self, refused: Refused) -> Headers:
        """What a refusal's head says of the verdict."""
        return fields(self.dialect, self.verdict, refused.retry_after)


class Given(NamedTuple):
    """What was found out about a request before it reached the gate, and of which request.

    It holds for the rules and for the method, path and root path that it was found out by.
    """

    rules: Rules
    place: Place
    matched: Matched
    asked: Asked
    criticality: Criticality


class Fairness:
    """Each caller's share: one atomic question to the store, nothing taken by a refusal.

    rules       the policy's; may be exchanged while requests are served
    store       decides
    identifier  tells who is asking, with the resolver's help
    telemetry   hears every decision

    `rewritten` is set once a request has reached the gate with another path than it came with.

    A request's scope keeps what is `Given` of it under `given`, and under `ticket` the `Ticket` of one
    that may pass, where the store was asked ahead of the gate: by names of this one's own, since one
    application may hold another that is protected as well.
    """

    def __init__(
        self, rules: Rules, *, store: Store, identifier: Identifier, telemetry: Telemetry
    ) -> None:
        self.rules = rules
        self._store, self._identifier, self._telemetry = store, identifier, telemetry
        self.rewritten = False
        self.given, self.ticket = f"headworks.given:{id(self)}", f"headworks.ticket:{id(self)}"
        self._watching: set[asyncio.Task[None]] = set()

    def admit(
        self,
        scope: Scope,
        standing: Current,
        ticket: Ticket,
        rules: Rules,
        matched: Matched | None,
        asked: Asked | None,
    ) -> Awaitable[QuotaExceeded | None]:
        """Ask the caller's and the route's limits together; the refusal if one is used up.

        asked  what they are, where it is known already
        """
        if asked is None:
            return self._find_out(scope, standing, ticket, rules, matched)
        ticket.asked = asked
        return self._ask(ticket, asked, standing.criticality)

    async def _find_out(
        self, scope: Scope, standing: Current, ticket: Ticket, rules: Rules, matched: Matched | None
    ) -> QuotaExceeded | None:
        """The same where it is not known yet who asks, or for what."""
        identity = await self._identifier.resolve(scope, rules.callers)
        _tell(identity, standing)
        ticket.asked = rules.limits.asks(identity, matched)
        return await self._ask(ticket, ticket.asked, standing.criticality)

    async def charge(self, units: int) -> None:
        """Take `units` (≥ 0) more of the current request's limits; all of it, or `QuotaExceeded`."""
        standing = current()
        ticket = standing.ticket
        if not isinstance(ticket, Ticket) or ticket.of is not self:
            raise RuntimeError("charge() belongs into a request that the limits were asked for")
        if isinstance(units, bool) or not isinstance(units, int) or units < 0:
            raise ValueError(f"charge({units!r}): a charge is a whole number ≥ 0")
        refused = await self._ask(ticket, ticket.asked.costing(units), standing.criticality)
        if refused is not None:
            raise refused

    async def _ask(self, ticket: Ticket, asked: Asked, criticality: Criticality) -> QuotaExceeded | None:
        for ask in asked.shadow:
            self._watch(ask)
        if asked.question is None:
            return None
        verdict = ticket.verdict = await self._store.ask(asked.question)
        return judged(verdict, asked, criticality, self._telemetry)

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
        ticket: Ticket | None = scope.pop(self._fairness.ticket, None)
        if ticket is None:
            await self._ask(scope, receive, send)
            return
        ticket.telling = True
        try:
            if ticket.cancel:
                _take_along(current())
            await self.app(scope, receive, send)
        except Exception as error:
            behind = refused_behind(error)
            # Too late for it, or whoever was asked inside of here tells its own.
            if behind is None or not ticket.telling or current().ticket is not ticket:
                raise
            ticket.telling = False
            await send_whole(send, *render(behind, ticket.refusing(behind)))
        finally:
            ticket.telling = False

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The same where nobody has asked ahead."""
        if scope["type"] == "http":
            kind = _Answer
        elif scope["type"] == "websocket":
            kind = _Socket
        else:
            await self.app(scope, receive, send)
            return
        fairness, standing = self._fairness, current()
        rules, matched, asked = self._known(scope)
        answer = kind(fairness, send, rules.dialect)
        try:
            if matched is not None:
                _take_up(matched, standing)
            if not _is_preflight(scope):
                refused = await fairness.admit(scope, standing, answer, rules, matched, asked)
                if refused is not None:
                    await answer.refuse(refused, scope, send)
                    return
                standing.ticket = answer
            await self.app(scope, receive, answer.send)
        except Exception as error:
            behind = refused_behind(error)
            if behind is None or not await answer.refuse(behind, scope, send):
                raise
        finally:
            answer.over()

    def _known(self, scope: Scope) -> tuple[Rules, Matched | None, Asked | None]:
        """What is known of the request, from outside where it is still the same request."""
        fairness = self._fairness
        rules, given = fairness.rules, scope.get(fairness.given)
        if given is not None:
            known, place, matched, asked, _ = given
            if place != place_of(scope):
                fairness.rewritten = True
            elif known is rules:
                return rules, matched, asked
        return rules, self._routes.find(scope), None


class _Answer(Ticket):
    """What is sent to the client of a request; its head tells the caller's limits, once."""

    __slots__ = ("_send", "begun", "ended")

    start = "http.response.start"

    def __init__(self, of: Fairness, send: Send, dialect: str) -> None:
        self.of, self.dialect, self.asked, self.verdict = of, dialect, NOTHING, None
        self._send = send
        self.begun = self.ended = self.telling = self.cancel = False

    # No coroutine of its own: every part of an answer passes here.
    def send(self, message: Message) -> Awaitable[None]:
        if message["type"] == self.start:
            self.begun = True
            message = self.head(message)
        return self._send(message)

    async def refuse(self, refused: Refused, scope: Scope, send: Send) -> bool:
        """Answer with the refusal, if it is not too late for one."""
        if self.begun:
            return False
        await send_whole(send, *render(refused, self.refusing(refused)))
        return True

    def over(self) -> None:
        """Nothing more is sent. The ticket stays with the request's standing, but not the request: the
        way to its client leads back there, and would leave it all to the collector."""
        self._send = _nobody


class _Socket(_Answer):
    """The same for a websocket: asked when it connects, and told in the head that accepts it."""

    __slots__ = ()

    start = "websocket.accept"

    def send(self, message: Message) -> Awaitable[None]:
        if message["type"] in ("websocket.close", "websocket.http.response.start"):
            self.ended = True
        return super().send(message)

    async def refuse(self, refused: Refused, scope: Scope, send: Send) -> bool:
        if self.ended:
            return False
        if self.begun:
            await send({"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": refused.reason})
        else:
            await refuse_websocket(scope, send, refused, self.refusing(refused))
        return True


async def _nobody(message: Message) -> None:
    """Whom the parts of an answer reach once its request is over."""


def _without(theirs: Iterable[tuple[bytes, bytes]], names: set[bytes]) -> Headers:
    """Without those whose place ours take."""
    return [header for header in theirs if header[0].lower() not in names]


def _is_preflight(scope: Scope) -> bool:
    """Whether this is a browser's question before a cross-origin request, which asks no limits."""
    if scope.get("method") != "OPTIONS":
        return False
    names = {name for name, _ in scope["headers"]}
    return b"origin" in names and b"access-control-request-method" in names


def _take_up(matched: Matched, standing: Current) -> None:
    """What the route says of the request; `CallerLeft` where nobody is left whom it would be for."""
    standing.route, standing.lasting = matched.template, matched.lasting
    if matched.cancel:
        _take_along(standing)


def _take_along(standing: Current) -> None:
    if standing.caller is not None:
        standing.caller.take_along()


def _tell(identity: Identity, standing: Current) -> None:
    """What the resolver found out is what everyone downstream shall know."""
    standing.tenant, standing.weight = identity.tenant, identity.weight
    standing.rank(identity.criticality, known=identity.known)
