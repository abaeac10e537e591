"""What single calls ask for themselves: by `Vendor.as_` around them, or by headers.

An SDK's methods know nothing of tenants or classes. What is said around the call reaches it by a
context variable; where that is awkward, `extra_headers` do, and are taken off before the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from types import TracebackType

import httpx2

from headworks.current import Criticality, Current

HEADERS = ("x-headworks-tenant", "x-headworks-criticality", "x-headworks-tokens")
_RAW = frozenset(name.encode() for name in HEADERS)


@dataclass(frozen=True, slots=True)
class Wish:
    """None: as the request that is being served, or as estimated.

    tenant       whose share of the line the call comes out of
    criticality  its class in the line
    tokens       what it is expected to cost, ≥ 0
    """

    tenant: str | None = None
    criticality: Criticality | None = None
    tokens: int | None = None

    @classmethod
    def of(cls, tenant: str | None, criticality: str | None, tokens: int | None) -> Wish:
        """A wish in words; `ValueError` names what cannot be."""
        if criticality is not None and criticality.upper() not in Criticality.__members__:
            known = ", ".join(level.name.lower() for level in Criticality)
            raise ValueError(f"criticality: {criticality!r} must be one of {known}")
        if tokens is not None and tokens < 0:
            raise ValueError(f"tokens: {tokens} must be 0 or more")
        return cls(tenant, None if criticality is None else Criticality.of(criticality), tokens)

    def over(self, other: Wish) -> Wish:
        """This one, and the other where this says nothing."""
        return Wish(
            other.tenant if self.tenant is None else self.tenant,
            other.criticality if self.criticality is None else self.criticality,
            other.tokens if self.tokens is None else self.tokens,
        )

    def standing(self, who: Current, until: float) -> Current:
        """How the call stands in the line: as the request does, but for what is wished, and no longer
        than `until`. Streams stay registered with the request."""
        if self is NOTHING and until >= who.deadline:
            return who
        return replace(
            who,
            tenant=who.tenant if self.tenant is None else self.tenant,
            criticality=who.criticality if self.criticality is None else self.criticality,
            deadline=min(who.deadline, until),
        )

    def cost(self, estimated: Mapping[str, int]) -> Mapping[str, int]:
        """What the call is expected to cost."""
        if self.tokens is None:
            return estimated
        return {**estimated, "tokens": self.tokens, "input_tokens": self.tokens}


NOTHING = Wish()


class Wishes:
    """The wishes around one vendor's calls."""

    def __init__(self, vendor: str) -> None:
        self._now: ContextVar[Wish] = ContextVar(f"headworks_wish_{vendor}", default=NOTHING)

    def now(self) -> Wish:
        return self._now.get()

    def take_off(self, request: httpx2.Request) -> Wish:
        """What is wished for this request; its headers that said so are gone afterwards.

        Raises `ValueError` naming the header whose value cannot be.
        """
        if _RAW.isdisjoint([name.lower() for name, _ in request.headers.raw]):
            return self._now.get()
        said = [request.headers.pop(name, None) for name in HEADERS]
        tenant, criticality, tokens = said
        if tokens is not None and not (tokens.isascii() and tokens.isdecimal()):
            raise ValueError(f"{HEADERS[2]}: {tokens!r} must be a whole number, 0 or more")
        return Wish.of(tenant, criticality, None if tokens is None else int(tokens)).over(self.now())

    def around(self, wish: Wish) -> Around:
        return Around(self._now, wish)


class Around:
    """A block whose calls wish this; an inner block speaks over an outer one."""

    __slots__ = ("_now", "_token", "_wish")

    def __init__(self, now: ContextVar[Wish], wish: Wish) -> None:
        self._now, self._wish = now, wish
        self._token: Token[Wish] | None = None

    def __enter__(self) -> None:
        self._token = self._now.set(self._wish.over(self._now.get()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._token is not None:
            self._now.reset(self._token)
