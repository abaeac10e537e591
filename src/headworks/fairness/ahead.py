"""What can be said of a request's limits before the application is reached.

A caller who is known to be over a limit is refused outside of everything, and so a flood from one
caller takes no place in the pod. And where nothing stands between admission and fairness that might
answer in its own way, the store is asked before the application is begun: a request that waits for its
verdict is then a small thing, and one that is refused never was more. Both are the answers, from the
same numbers, that the gate inside would give; they only come without what middleware would add. So
whatever may make a difference goes inside:

    websockets; requests of other origins, which need the headers of CORS; whoever carries a header that
    matters to admission; a caller that cannot be told without waiting; a path of no route, which may be
    a page of the middleware's own; limits that are watched; and everything, once any middleware has
    been seen to change a request's path

What has been found out on the way is handed on in the scope, so that nobody finds it out twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from starlette.types import Scope

from headworks.current import ROUTE, Current
from headworks.fairness.gate import Fairness, Given, Ticket
from headworks.fairness.limits import Asks
from headworks.fairness.refusal import answered, passing
from headworks.fairness.routes import Routes, place_of
from headworks.identity import Identifier
from headworks.problem import Whole
from headworks.store.deny import LATELY
from headworks.store.protocol import Question
from headworks.telemetry import Decided, Telemetry
from headworks.verdict import Verdict

Known = Callable[[Asks], Verdict | None]
"""The refusal of these asks from memory, None where there is none: `DenyCache.known_nowait`."""

_Written = tuple[Verdict, Whole, Decided]
"""A verdict, held so that its id stays its own, its answer, and the event that tells of it."""

_ORIGIN: Final = b"origin"


class Ahead:
    """Fairness's word at the door.

    known       what the store has refused and would still
    fairness    the shares, whose rules and events these are
    routes      the application's routes
    identifier  tells who is asking
    telemetry   hears of every decision
    inside      names of headers, in lower case, whose requests are admission's to judge
    """

    def __init__(
        self,
        *,
        known: Known,
        fairness: Fairness,
        routes: Routes,
        identifier: Identifier,
        telemetry: Telemetry,
        inside: Iterable[bytes],
    ) -> None:
        self._known, self._fairness, self._routes = known, fairness, routes
        self._identifier, self._telemetry = identifier, telemetry
        self._inside = frozenset({_ORIGIN, *inside})
        self._written: dict[int, _Written] = {}

    def look(self, scope: Scope) -> Given | None:
        """What an HTTP request is asked for, None where that is for inside."""
        fairness = self._fairness
        if fairness.rewritten:
            return None
        identity, sure = self._identifier.tell(scope)
        if not sure:
            return None
        place = place_of(scope)
        try:
            matched = self._routes.find(scope, place)
        except Exception:  # of the application's own rules: to be raised inside, where it is answered
            return None
        if matched is None:
            return None
        scope[ROUTE] = matched.template
        rules = fairness.rules
        asked = rules.limits.asks(identity, matched)
        # Half the time of its own constructor.
        given = scope[fairness.given] = tuple.__new__(
            Given, (rules, place, matched, asked, identity.criticality)
        )
        if asked.question is None or asked.shadow:
            return None
        for name, _ in scope["headers"]:
            if name in self._inside:
                return None
        return given

    def known(self, given: Given) -> Whole | None:
        """The refusal from memory; None where it is not known to be one. One that comes many times a
        moment, as in a flood, is written once (`DenyCache.known_nowait`)."""
        verdict = self._known(given.asked.asks)
        if verdict is None:
            return None
        again = self._written.get(id(verdict))
        if again is None or again[0] is not verdict:
            again = self._write(given, verdict)
        self._telemetry.emit(again[2])
        return again[1]

    def _write(self, given: Given, verdict: Verdict) -> _Written:
        whole, event = answered(verdict, given.asked, given.criticality)
        if len(self._written) >= LATELY:
            self._written.clear()
        written = self._written[id(verdict)] = (verdict, whole, event)
        return written

    def stands(self, scope: Scope) -> bool:
        """Whether what `look` has found is of the policy that holds."""
        given: Given = scope[self._fairness.given]
        return given.rules is self._fairness.rules

    def question(self, scope: Scope) -> Question:
        """What the store is to be asked about what `look` has found."""
        given: Given = scope[self._fairness.given]
        question = given.asked.question
        assert question is not None, "who is asked nothing is for inside"
        return question

    def answer(self, scope: Scope, standing: Current, verdict: Verdict) -> Whole | None:
        """The refusal; None where the request may pass, for which the gate inside finds its ticket."""
        fairness = self._fairness
        rules, _, matched, asked, criticality = scope[fairness.given]
        if not verdict[0]:
            whole, event = answered(verdict, asked, criticality)
            self._telemetry.emit(event)
            return whole
        self._telemetry.emit(passing(verdict, asked, criticality))
        standing.route, standing.lasting = matched.template, matched.lasting
        standing.ticket = scope[fairness.ticket] = Ticket(
            fairness, rules.dialect, asked, verdict, matched.cancel
        )
        return None
