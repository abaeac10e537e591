"""The pod's gate: plain ASGI around the whole application.

It decides before anything is received, so a refusal costs neither a body nor the application. Only a
request that waits in line is read ahead, to hear whether its client leaves. A place is held until the
last byte of the answer is sent or the application returns, whichever comes first: background tasks
hold one only where the policy says so. A request's time runs from here: `sla`, or less where its caller
says so. When it is spent and the answer not complete, the application is cancelled and the client
told: 504 where nothing had begun, else as `Answer.conclude` can. A client that stops reading is cut
off.

Refusals never say `connection: close`: the server would drop a large upload with the answer in it,
while without it the rest of the body is read and thrown away and the client sees the answer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from headworks.admission.answer import Answer, ClientStalled, Entry, leave_transport
from headworks.admission.answers import Answers
from headworks.admission.deadline import asked_for
from headworks.admission.early import EarlyMessages
from headworks.admission.slots import Slot, Slots
from headworks.admission.stated import StatedClass
from headworks.admission.waiting import Turn
from headworks.admission.within import all_within
from headworks.caller import Presence
from headworks.cleanup import Reaper
from headworks.current import ROUTE, Closer, Criticality, Current, enter, leave
from headworks.errors import CallerLeft, DeadlineExceeded, Refused
from headworks.identity import Identifier
from headworks.problem import Headers, Whole, refuse_websocket, send_whole
from headworks.telemetry import Decided, Queued, Served, Shadowed, Telemetry

log = logging.getLogger("headworks")


First = Callable[[Scope], Awaitable[Whole | None]]
"""Whoever has a word before the application: a whole answer in its place, or None."""

_new: Final = tuple.__new__
"""Fills an event in three fifths of the time its own constructor takes."""
_CLASS: Final = {kind: kind.name.lower() for kind in Criticality}
_ADMITTED: Final = {kind: Decided("admission", True, criticality=_CLASS[kind]) for kind in Criticality}


class AdmissionGate:
    """Lets a request in while the pod has room for its class, and accounts for it until it is over.

    app              the application's whole middleware stack
    slots            the pod's places
    answers          what is being answered, for a pod that leaves
    identifier       tells the class of a caller without waiting
    sla              seconds a request may take, > 0
    deadline_header  where a caller says that it will wait less, in any case; "": nowhere
    telemetry        hears every decision and every answer
    reaper           closes what requests left open
    route_of         names the route of a request that did not get as far as its route; "" for none
    stated           reads the class that trusted callers state; None: nobody may
    hold_background  hold a place until background tasks have ended, too; may change
    shadow           let in whoever would be refused, and only tell; needs places without a line; may
                     change
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        slots: Slots,
        answers: Answers,
        identifier: Identifier,
        sla: float,
        deadline_header: str,
        telemetry: Telemetry,
        reaper: Reaper,
        route_of: Callable[[Scope], str] = lambda scope: "",
        stated: StatedClass | None = None,
        hold_background: bool = False,
        shadow: bool = False,
    ) -> None:
        self.app = app
        self._slots, self.answers, self._identifier = slots, answers, identifier
        self._sla = sla
        self._deadline_header = deadline_header.lower().encode()
        self._telemetry, self._reaper, self._route_of = telemetry, reaper, route_of
        self._stated, self.hold_background, self.shadow = stated, hold_background, shadow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self.go_on(self.enter(scope), None, scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def enter(self, scope: Scope) -> Entry:
        """Ask for a place for an HTTP request. What comes of it has to `go_on`, or to `turn_back`."""
        arrived = self.answers.now()
        entry = self._standing(scope, arrived, self._sla)
        try:
            if self._deadline_header:
                asked = asked_for(scope, self._deadline_header)
                if asked is not None:
                    self._shorten(asked, entry)
            place: Slot | Turn = self._slots.claim(entry, arrived)
        except Refused as refused:
            if not self.shadow or refused.layer != "admission":
                self._refused(entry, refused)
                entry.place = refused
                return entry
            self._telemetry.emit(Shadowed("admission", False, refused.reason))
            place = self._slots.claim_anyway(arrived)
        entry.place = place
        if isinstance(place, Slot):
            self._telemetry.emit(_ADMITTED[entry.criticality])
        return entry

    def turn_back(self, entry: Entry, scope: Scope, status: int) -> None:
        """It does not get as far as the application, though there was a place: the place returns.

        status  of the answer it was given, 0 where it was given none
        """
        assert isinstance(entry.place, Slot)
        entry.place.end()
        self._served(entry, scope, status)

    async def tell(self, send: Send, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer for which there is no place, and no `Answer`; a client that does not read
        it is cut off all the same."""
        try:
            await all_within(self.answers.write_stall, send_whole(send, status, headers, body))
        except TimeoutError:
            self._cut_off()
            await leave_transport(send, "abort")

    async def go_on(
        self,
        entry: Entry,
        first: First | None,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Serve the request, refuse it, or let it wait, as `enter` has found.

        first  asked once there is a place, ahead of the application, which an answer of its replaces;
               None: nobody
        """
        place, answers = entry.place, self.answers
        caller = entry.caller = Presence(scope, receive)
        answer = Answer(send, scope, caller, entry, answers)
        try:
            if isinstance(place, Slot):
                await self._serve(place, answer, first)
            elif isinstance(place, Turn):
                await self._wait(place, receive, answer, first)
            else:
                await answer.refuse(place)
        except ClientStalled:
            self._cut_off()
            await answer.abort()
        finally:
            self._served(entry, scope, answer.status)

    def _served(self, entry: Entry, scope: Scope, status: int) -> None:
        seconds = self.answers.clock() - entry.arrived
        # The latter two where it was refused before it got there.
        route = entry.route or scope.get(ROUTE) or self._route_of(scope)
        self._telemetry.emit(_new(Served, (route, scope["method"], status, seconds)))

    def _cut_off(self) -> None:
        self._slots.stalled += 1
        log.info("a client was cut off: it read nothing for %g s", self.answers.write_stall)

    def _shorten(self, asked: float, entry: Entry) -> None:
        """The caller's own deadline, where it is the stricter one; `DeadlineExceeded` if it is over."""
        if asked <= 0:
            raise DeadlineExceeded("the caller's own deadline had passed when its request came")
        entry.latest = entry.arrived + asked
        entry.deadline = min(entry.deadline, entry.latest)

    async def _wait(self, turn: Turn, receive: Receive, answer: Answer, first: First | None) -> None:
        """Stand in line, and go on with what comes of it."""
        early = EarlyMessages(receive, turn.left)
        self.answers.queue(turn)
        try:
            try:
                slot = await turn.take()
            except CallerLeft:
                self._queued(answer, "left")
                self._slots.left += 1
            except Refused as refused:
                self._queued(answer, "refused")
                self._refused(answer.current, refused)
                await answer.refuse(refused)
            else:
                early.hand_on()
                answer.caller.source = early.receive
                self._queued(answer, "admitted")
                self._telemetry.emit(_ADMITTED[answer.current.criticality])
                await self._serve(slot, answer, first)
        finally:
            self.answers.unqueue(turn)
            early.close()

    async def _serve(self, slot: Slot, answer: Answer, first: First | None) -> None:
        """Run the application until it returns, or is cancelled because its answer has to end. The place
        is returned whatever happens, at the last byte of the answer at the latest unless background
        tasks hold it."""
        if not self.hold_background:
            answer.slot = slot
        token = enter(answer.current)
        try:
            try:
                try:
                    answer.begin()
                    whole = None if first is None else await first(answer.scope)
                    if whole is None:
                        await self.app(answer.scope, answer.caller.receive, answer.send)
                    else:
                        await send_whole(answer.send, *whole)
                except BaseException as error:
                    answer.over(error)
                    raise
                else:
                    answer.over()
                    if answer.stalled:  # the application may have swallowed it
                        raise ClientStalled
            except Exception as error:
                if answer.stalled:
                    raise ClientStalled from error
                if answer.complete or not answer.given_up:
                    answer.status = answer.status or 500  # the server's, who now answers in our place
                    raise
                if not isinstance(error, TimeoutError):
                    log.warning("the application raised when its time was up", exc_info=error)
            finally:
                leave(token)
            if answer.given_up and not answer.complete:
                await self._end_early(answer)
        finally:
            if not answer.complete:
                answer.caller.answered()
            slot.end()
            if answer.current.opened:
                self._hand_over(answer.current.opened)

    async def _end_early(self, answer: Answer) -> None:
        """Tell the client why there is no answer, or no more of it."""
        refused = answer.because()
        self._slots.expired += isinstance(refused, DeadlineExceeded)
        self._telemetry.emit(Decided(refused.layer, False, refused.reason))
        await (answer.conclude(refused) if answer.begun else answer.refuse(refused))

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        current = self._standing(scope, self.answers.now(), math.inf)
        try:
            slot = self._slots.claim_websocket(current)
        except Refused as refused:
            if not self.shadow:
                self._refused(current, refused)
                await refuse_websocket(scope, send, refused)
                return
            self._telemetry.emit(Shadowed("admission", False, refused.reason))
            slot = self._slots.claim_websocket_anyway()
        self._telemetry.emit(_ADMITTED[current.criticality])
        token = enter(current)
        try:
            await self.app(scope, receive, send)
        finally:
            leave(token)
            slot.end()
            if current.opened:
                self._hand_over(current.opened)

    def _standing(self, scope: Scope, arrived: float, budget: float) -> Entry:
        """What is known of a request without waiting; it has `budget` seconds."""
        identity = self._identifier.identify(scope)
        entry = Entry(arrived + budget, identity.tenant, identity.criticality, identity.weight)
        entry.arrived = arrived
        if self._stated is not None:
            entry.stated = self._stated.of(scope, self._identifier.callers.trust)
            entry.rank(identity.criticality, known=identity.known)
        return entry

    def _refused(self, current: Current, refused: Refused) -> None:
        name = _CLASS[current.criticality]
        self._telemetry.emit(Decided(refused.layer, False, refused.reason, criticality=name))

    def _queued(self, answer: Answer, ending: str) -> None:
        seconds = self.answers.now() - answer.current.arrived
        self._telemetry.emit(Queued(seconds, ending))

    def _hand_over(self, opened: set[Closer]) -> None:
        """Synchronous, as the return of the place before it: nothing can come between."""
        for closer in opened:
            self._reaper.hand_over("closing what a request left open", closer)
        opened.clear()
