"""A class stated in a header: whose word counts, and how far."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from headworks.address import Trust
from headworks.admission import StatedClass
from headworks.current import Criticality, Current
from headworks.identity import Callers, Identifier, Rank

GATEWAY, INSIDE, OUTSIDE = "10.0.0.1", "10.2.3.4", "203.0.113.7"
OURS = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/32")]
TRUST = Trust(OURS)
STATED = StatedClass("X-Class")
IDENTIFIER = Identifier(
    Callers(
        header="x-key",
        tiers={"free": Rank(Criticality.SHEDDABLE), "best": Rank(Criticality.CRITICAL)},
        default_tier="free",
        keys={"f": "free", "b": "best"},
        trust=OURS,
    )
)


def stands(
    *classes: bytes,
    peer: str | None = INSIDE,
    key: str | None = None,
    forwarded: str | None = None,
    newer: str | None = None,
) -> Criticality:
    """The class in which a request with these headers stands."""
    headers = [(b"x-class", value) for value in classes]
    headers += [(b"x-key", key.encode())] if key else []
    headers += [(b"x-forwarded-for", forwarded.encode())] if forwarded else []
    headers += [(b"forwarded", newer.encode())] if newer else []
    scope: dict[str, Any] = {"type": "http", "headers": headers, "client": (peer, 1) if peer else None}
    identity = IDENTIFIER.identify(scope)
    current = Current(stated=STATED.of(scope, TRUST))
    current.rank(identity.criticality, known=identity.known)
    return current.criticality


def test_a_trusted_caller_may_state_any_class() -> None:
    assert stands(b"critical") is Criticality.CRITICAL
    assert stands(b" Background ") is Criticality.BACKGROUND
    assert stands(b"default", peer="2001:db8:1:2::3") is Criticality.DEFAULT
    assert stands() is Criticality.SHEDDABLE


def test_a_known_key_is_the_ceiling() -> None:
    """Nobody's request is worth more than its tier, whoever passes it on; less, it may be."""
    assert stands(b"critical", key="f") is Criticality.SHEDDABLE
    assert stands(b"background", key="f") is Criticality.BACKGROUND
    assert stands(b"sheddable", key="b") is Criticality.SHEDDABLE
    assert stands(b"critical", key="b") is Criticality.CRITICAL


@pytest.mark.parametrize(
    ("peer", "forwarded"),
    [
        (OUTSIDE, None),
        (OUTSIDE, INSIDE),
        (GATEWAY, OUTSIDE),
        (GATEWAY, f"{INSIDE}, {OUTSIDE}"),
        (None, None),
        ("2001:db9::1", None),
    ],
)
def test_from_anybody_else_the_header_is_not_looked_at(peer: str | None, forwarded: str | None) -> None:
    """Not from outside, not from outside through the gateway, not with an invented chain."""
    assert stands(b"critical", peer=peer, forwarded=forwarded) is Criticality.SHEDDABLE
    assert stands(b"background", peer=peer, forwarded=forwarded) is Criticality.SHEDDABLE


@pytest.mark.parametrize(
    ("forwarded", "newer"),
    [
        (OUTSIDE, "x"),
        (OUTSIDE, f"for={INSIDE}"),
        (None, "for=;;"),
        (f"{OUTSIDE}, unknown", None),
        (None, "for=_hidden"),
        (INSIDE, f"for={GATEWAY}"),
    ],
)
def test_a_chain_that_leaves_a_doubt_is_not_taken_for_the_gateways_own_word(
    forwarded: str | None, newer: str | None
) -> None:
    """Such a request is counted by the gateway's address, which is trusted: nobody may gain by that."""
    stated = stands(b"critical", peer=GATEWAY, forwarded=forwarded, newer=newer)
    assert stated is Criticality.SHEDDABLE


def test_an_inner_caller_through_the_gateway_is_believed() -> None:
    assert stands(b"critical", peer=GATEWAY, forwarded=INSIDE) is Criticality.CRITICAL


@pytest.mark.parametrize("classes", [(b"urgent",), (b"",), (b"critical", b"critical"), (b"\xff",)])
def test_what_is_no_class_states_none(classes: tuple[bytes, ...]) -> None:
    assert stands(*classes) is Criticality.SHEDDABLE
