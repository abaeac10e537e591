"""What everyone downstream may know of the request being served, carried by one contextvar.

The deadline is a point on the event loop's clock (`loop.time()`), so that every wait can respect it
without arithmetic of its own.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

from headworks.caller import Message, Presence


class Criticality(IntEnum):
    """How much a request matters under pressure; the lowest is shed first."""

    BACKGROUND = 0
    SHEDDABLE = 1
    DEFAULT = 2
    CRITICAL = 3

    @classmethod
    def of(cls, name: str) -> Criticality:
        """The class of that name ("background", "sheddable", "default", "critical")."""
        return cls[name.upper()]


class Ticket(Protocol):
    """What a request was asked for.

    telling  whoever sends the head of its answer passes it through `head`
    """

    telling: bool

    def head(self, message: Message, /) -> Message:
        """The head with what it says of the verdict."""
        ...


Closer = Callable[[], Awaitable[None]]

ROUTE: Final = "headworks.route"
"""Where a request's scope keeps the template of its route, if it was found before anybody decided."""


@dataclass(slots=True)
class Current:
    """One request's standing.

    deadline     `loop.time()` by which its answer must be complete; inf without one, and once it is
    tenant       whose fair share its vendor calls come out of
    criticality  its class under pressure
    weight       its tenant's weight in the vendor line, ≥ 1
    stated       the class that a trusted caller stated for it, None without one
    route        template of the route it matched ("/items/{item_id}"), "" while or where none did
    caller       whoever asked, for who must not outlast it; None outside of HTTP requests
    lasting      seconds from the request's arrival that an answer may last once it has begun, where its
                 route says so; None: to the deadline
    opened       asynchronous closers of whatever it opened and did not close (vendor streams),
                 run once when the request ends; None: nothing yet
    ticket       what its caller's limits were asked for, kept by whoever asked; None: nothing was
    """

    deadline: float = math.inf
    tenant: str = ""
    criticality: Criticality = Criticality.DEFAULT
    weight: int = 1
    stated: Criticality | None = None
    route: str = ""
    caller: Presence | None = None
    lasting: float | None = None
    opened: set[Closer] | None = None
    ticket: Ticket | None = None

    @property
    def closers(self) -> set[Closer]:
        """What there is in `opened`, for who puts it there."""
        if self.opened is None:
            self.opened = set()
        return self.opened

    def rank(self, own: Criticality, *, known: bool) -> None:
        """Stand in the class of the request's identity, or in the stated one.

        The class of a known key is the ceiling of what may be stated; without one the word decides.
        """
        if self.stated is None or (known and self.stated > own):
            self.criticality = own
        else:
            self.criticality = self.stated


_current: ContextVar[Current | None] = ContextVar("headworks_current", default=None)


def current() -> Current:
    """The request being served, or a fresh stand-in without deadline outside of any request."""
    return _current.get() or Current()


enter = _current.set
leave = _current.reset
