"""What the layers tell the world, as frozen records. Sinks decide what becomes of them.

Named tuples: every request makes some, and a frozen dataclass takes twice as long to fill.
"""

from __future__ import annotations

from typing import NamedTuple


class Decided(NamedTuple):
    """A layer let a request or call pass, or refused it. `rule` names the limit or vendor.

    near  units that passed beyond four fifths of it
    """

    layer: str
    admitted: bool
    reason: str = ""
    rule: str = ""
    criticality: str = ""
    near: int = 0


class Shadowed(NamedTuple):
    """A rule that is only watched would have let a request pass, or refused it. Where a whole layer is
    watched, only what it would have refused is told, and `rule` is the reason."""

    layer: str
    admitted: bool
    rule: str


class Served(NamedTuple):
    """A request has been answered: by which route (template, not path), how, in how many seconds."""

    route: str
    method: str
    status: int
    seconds: float


class Waited(NamedTuple):
    """A call stood in a vendor's line for so many seconds before it was sent."""

    vendor: str
    seconds: float


class Queued(NamedTuple):
    """A request stood in the pod's line for so many seconds; `ending`: admitted, refused or left."""

    seconds: float
    ending: str


class Called(NamedTuple):
    """An attempt at a vendor is over: its ending, its seconds, the vendor's status (0: none)."""

    vendor: str
    model: str
    ending: str
    seconds: float
    status: int = 0
    units: int = 0


class Rejected(NamedTuple):
    """A vendor answered 429 or 529, or a stream told the like midway; `kind`: rate, ramp or spend.
    It pauses the whole fleet."""

    vendor: str
    kind: str


class Told(NamedTuple):
    """What a vendor's headers said: so many `unit` left, all of them back in `reset` seconds (None: did
    not say)."""

    vendor: str
    unit: str
    remaining: float
    reset: float | None


class Changed(NamedTuple):
    """Something switched state: a breaker, the store's ladder, readiness."""

    subject: str
    state: str
    detail: str = ""


Event = Decided | Shadowed | Served | Queued | Waited | Called | Rejected | Told | Changed
