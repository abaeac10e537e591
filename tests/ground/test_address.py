"""The client's address: from trusted hops only, whatever is written into forwarding headers."""

from __future__ import annotations

import ipaddress
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headworks.address import (
    MAX_FORWARDED,
    MAX_HOPS,
    MAX_PEERS,
    Scope,
    Trust,
    client_of,
    client_within,
)

OURS = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))
TRUST = Trust(OURS)


def client_address(asked: Scope, trust: Trust) -> str:
    return client_of(asked, trust)[0][2]


def scope(peer: str | None = "10.0.0.1", *headers: tuple[str, str | bytes]) -> dict[str, Any]:
    encoded = [
        (name.lower().encode(), value.encode() if isinstance(value, str) else value)
        for name, value in headers
    ]
    return {"type": "http", "client": (peer, 40_000) if peer else None, "headers": encoded}


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.7", [], "203.0.113.7"),
        ("203.0.113.7", ["198.51.100.1"], "203.0.113.7"),  # an untrusted peer says nothing
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1"], "198.51.100.1"),  # what the client wrote is ignored
        ("10.0.0.1", ["1.1.1.1, 198.51.100.1, 10.9.9.9"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1", "198.51.100.1"], "198.51.100.1"),  # two headers read as one list
        ("10.0.0.1", ["10.0.0.5"], "10.0.0.5"),  # a trusted client
        ("10.0.0.1", ["garbage"], "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1, garbage"], "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1,"], "10.0.0.1"),
        ("10.0.0.1", ["garbage, 10.0.0.5"], "10.0.0.5"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1:443"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8:1:2:3:4:5:6]:443"], "2001:db8:1:2::/64"),
        ("fd00::1", ["2001:db8:1:2:ffff::"], "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", [], "2001:db8:1:2::/64"),
        ("fe80::1%eth0", [], "fe80::/64"),
        ("10.0.0.1", ["198.51.100.1,10.0.0.2"], "198.51.100.1"),  # as some proxies join them
        ("10.0.0.1", ["1.1.1.1,198.51.100.1"], "198.51.100.1"),
        ("::ffff:203.0.113.7", [], "203.0.113.7"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        (None, ["198.51.100.1"], "local"),
        ("not an address", [], "local"),
    ],
)
def test_the_client_is_the_first_untrusted_hop_from_our_side(
    peer: str | None, forwarded: list[str], expected: str
) -> None:
    """Forwarding headers are walked from the right, past trusted hops, from a trusted peer only."""
    headers = [("X-Forwarded-For", value) for value in forwarded]
    assert client_address(scope(peer, *headers), TRUST) == expected


def test_a_list_of_hops_without_end_is_looked_at_only_so_far() -> None:
    """A thousand trusted hops cost no more than the bound, and name the last one looked at."""
    hops = ", ".join(["198.51.100.1"] + ["10.0.0.2"] * 1000)
    assert client_address(scope("10.0.0.1", ("X-Forwarded-For", hops)), TRUST) == "10.0.0.2"


@given(st.binary(max_size=200), st.one_of(st.none(), st.text(max_size=50)))
def test_no_header_breaks_the_address(forwarded: bytes, peer: str | None) -> None:
    """Whatever is sent, an address comes out, and a short one."""
    request = scope(peer, ("X-Forwarded-For", forwarded))
    assert len(client_address(request, TRUST)) <= 45
    assert len(client_address(scope("10.0.0.1", ("X-Forwarded-For", forwarded)), TRUST)) <= 45


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        (["for=198.51.100.1"], "198.51.100.1"),
        (["FOR=198.51.100.1;Proto=https;by=10.0.0.1"], "198.51.100.1"),
        (["proto=https; for=198.51.100.1"], "198.51.100.1"),  # seen in the field, though not by the RFC
        (['for="198.51.100.1:4711"'], "198.51.100.1"),
        (["for=198.51.100.1:4711"], "198.51.100.1"),
        (['for="[2001:db8:1:2::17]:4711"'], "2001:db8:1:2::/64"),
        (['for="[2001:db8:1:2::17%eth0]"'], "2001:db8:1:2::/64"),
        (['for="[::ffff:198.51.100.1]"'], "198.51.100.1"),
        (['for="198.51.100\\.1"'], "198.51.100.1"),  # a quoted pair
        (["for=1.1.1.1, for=198.51.100.1"], "198.51.100.1"),  # what the client wrote is ignored
        (["for=1.1.1.1", "for=198.51.100.1"], "198.51.100.1"),  # two headers read as one list
        (["for=198.51.100.1, for=10.9.9.9"], "198.51.100.1"),
        (["for=10.0.0.5"], "10.0.0.5"),  # a trusted client
        (["for=198.51.100.1, for=unknown"], "10.0.0.1"),
        (["for=198.51.100.1, for=_gazonk"], "10.0.0.1"),
        (["for=198.51.100.1, for=_hidden, for=10.0.0.5"], "10.0.0.5"),
        (["for=198.51.100.1, proto=https"], "10.0.0.1"),  # a hop that does not say for whom
        (["for=198.51.100.1,"], "10.0.0.1"),  # a proxy that appended nothing knew nothing
        ([""], "10.0.0.1"),
        (["for=198.51.100.1;for=1.1.1.1"], "10.0.0.1"),  # malformed from here on
        (["garbage, for=198.51.100.1"], "10.0.0.1"),
        (['for="1.1.1.1, for=198.51.100.1'], "10.0.0.1"),
        (['for=1.1.1.1;x=", for="198.51.100.1"'], "10.0.0.1"),  # a quote the client left open
        (["for=1.1.1.1 for=198.51.100.1"], "10.0.0.1"),
        (["x=" + "a" * MAX_FORWARDED + ", for=198.51.100.1"], "10.0.0.1"),
    ],
)
def test_forwarded_is_read_as_the_rfc_has_it(forwarded: list[str], expected: str) -> None:
    """RFC 7239: quotes, ports, brackets, hidden nodes; malformed in any part, it is not believed."""
    headers = [("Forwarded", value) for value in forwarded]
    assert client_address(scope("10.0.0.1", *headers), TRUST) == expected
    assert client_address(scope("203.0.113.7", *headers), TRUST) == "203.0.113.7"


@pytest.mark.parametrize(
    ("x_forwarded_for", "forwarded", "expected"),
    [
        ("198.51.100.1", "for=198.51.100.1", "198.51.100.1"),
        ("2001:db8:1:2::1", 'for="[2001:db8:1:2::2]"', "2001:db8:1:2::/64"),  # the same subscriber
        ("198.51.100.1", "for=1.1.1.1", "10.0.0.1"),
        ("1.1.1.1", "for=198.51.100.1", "10.0.0.1"),
        ("198.51.100.1", "for=", "10.0.0.1"),
        ("198.51.100.1", "", "10.0.0.1"),
    ],
)
def test_two_headers_that_disagree_are_both_not_believed(
    x_forwarded_for: str, forwarded: str, expected: str
) -> None:
    """The proxy wrote one and passed the client's other on: inventing the other gains no address."""
    headers = [("X-Forwarded-For", x_forwarded_for), ("Forwarded", forwarded)]
    assert client_address(scope("10.0.0.1", *headers), TRUST) == expected


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded"])
def test_an_invented_header_names_no_address_but_two(header: str) -> None:
    """A caller behind a proxy that writes the other header gains the proxy's own address, no more."""
    honest = {"X-Forwarded-For": "198.51.100.1", "Forwarded": "for=198.51.100.1"}
    del honest[header]
    found = {
        client_address(scope("10.0.0.1", (header, f"for=1.1.1.{n}"), *honest.items()), TRUST)
        for n in range(256)
    }
    assert found <= {"10.0.0.1", "198.51.100.1"}


def test_a_list_of_elements_without_end_is_looked_at_only_so_far() -> None:
    hops = ",".join(["for=1.1.1.1"] + ["for=10.0.0.2"] * 300)
    assert client_address(scope("10.0.0.1", ("Forwarded", hops)), TRUST) == "10.0.0.2"


@pytest.mark.parametrize("filler", [" ", "\t", "a", ";", ",", "a=b;", 'a="\\', 'a="', "=", '\\"'])
def test_no_header_takes_long_to_read(filler: str) -> None:
    """As much as a server lets through, of what makes careless patterns look again and again."""
    value = (filler * MAX_FORWARDED)[: MAX_FORWARDED - 1] + "!"
    asked = scope("10.0.0.1", ("Forwarded", value), ("X-Forwarded-For", value * 8))
    took = []
    for _ in range(3):
        began = time.process_time()
        client_address(asked, TRUST)
        took.append(time.process_time() - began)
    assert min(took) < 0.05, "processor time: three milliseconds at most where it was measured"


ADDRESSES = st.ip_addresses().map(str)
NODES = st.one_of(
    ADDRESSES, ADDRESSES.map("[{}]:80".format), ADDRESSES.map('"[{}]"'.format), st.text(max_size=20)
)


@given(
    st.lists(NODES, max_size=5),
    st.lists(NODES.map("for={}".format), max_size=5),
    st.sampled_from(["203.0.113.7", "10.0.0.1", "fd00::1"]),
)
def test_whatever_is_forwarded_an_address_comes_out(xff: list[str], fwd: list[str], peer: str) -> None:
    """Short, of harmless characters, and from an untrusted peer always the same."""
    headers = (("X-Forwarded-For", ", ".join(xff)), ("Forwarded", ", ".join(fwd)))
    found = client_address(scope(peer, *headers), TRUST)
    assert len(found) <= 45
    assert not set(found) - set("0123456789abcdef:./")
    if peer == "203.0.113.7":
        assert found == peer


@given(st.lists(ADDRESSES, max_size=4), st.ip_addresses(v=4))
def test_what_the_trusted_proxy_appended_decides_whatever_came_before(
    invented: list[str], client: ipaddress.IPv4Address
) -> None:
    """Both headers, any history: the last hop is the client, unless it is one of ours."""
    if any(client in network for network in OURS):
        return
    before = [f'for="{text}"' for text in invented]
    for header, hops in (
        ("X-Forwarded-For", [*invented, str(client)]),
        ("Forwarded", [*before, f"for={client}"]),
    ):
        assert client_address(scope("10.0.0.1", (header, ", ".join(hops))), TRUST) == str(client)


@given(st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,4}){2,4}", fullmatch=True))
def test_what_looks_like_an_address_is_one_where_python_says_so(text: str) -> None:
    """Leading zeros, parts too many or too few: no two readings of one address."""
    try:
        expected = str(ipaddress.ip_address(text))
    except ValueError:
        expected = "local"
    assert client_address(scope(text), TRUST) == expected


@pytest.mark.parametrize("peer", ["fd00::1:5", "127.0.0.1"])
def test_one_trusted_address_is_a_network_of_its_own(peer: str) -> None:
    """Longer than the /64 that an IPv6 client is counted by."""
    alone = Trust([ipaddress.ip_network(peer)])
    asked = ("X-Forwarded-For", "198.51.100.1")
    assert client_address(scope(peer, asked), alone) == "198.51.100.1"
    neighbour = "fd00::1:6" if ":" in peer else "127.0.0.2"
    assert client_address(scope(neighbour, asked), alone) != "198.51.100.1"
    assert client_within(scope(peer), alone)
    assert not client_within(scope(neighbour), alone)


def general(asked: Scope, trust: Trust) -> tuple[str, bool]:
    """`X-Forwarded-For` as it is defined: hop by hop from the right, each an address by itself."""
    peer = client_of(asked | {"headers": []}, trust)[0]
    rest = ",".join(value.decode("latin-1") for _, value in asked["headers"])
    hops = [hop.strip() for hop in reversed(rest.split(","))]
    if not hops[-1]:  # nothing stands before the first comma
        hops.pop()
    for hop in hops[:MAX_HOPS] if trust.holds(peer) and asked["headers"] else ():
        found = client_of(scope(hop), trust)[0]
        if found[2] == "local":
            return peer[2], False
        peer = found
        if not trust.holds(peer):
            break
    return peer[2], True


HOPS = st.one_of(
    ADDRESSES,
    st.sampled_from(
        ["10.0.0.2", "fd00::2", "::ffff:10.0.0.3", "::ffff:198.51.100.1", "2001:db8:1:2::1", "unknown"]
    ),
    st.builds("{}:{}".format, ADDRESSES, st.integers(0, 70_000)),
    st.builds("[{}]{}".format, ADDRESSES, st.sampled_from(["", ":80", " ", "junk"])),
    st.builds("{}%{}".format, ADDRESSES, st.sampled_from(["eth0", ""])),
    st.text('0123456789abcf.:[]% \t\x85\xa0"', max_size=12),
)
SPACED = st.builds("{}{}{}".format, BLANK := st.sampled_from(["", "", " ", "\t", "\xa0"]), HOPS, BLANK)


@given(
    st.lists(st.lists(SPACED, max_size=3).map(",".join), max_size=3),
    st.sampled_from(["203.0.113.7", "10.0.0.1", "fd00::1%eth0", "::ffff:10.0.0.1", "nobody", None]),
)
def test_a_hop_that_comes_alone_is_read_as_any_other(values: list[str], peer: str | None) -> None:
    """Nearly every request has one, and it is not walked: same address, same doubts; and a peer that is
    remembered is the peer that it was."""
    trust = Trust(OURS)
    asked = scope(peer, *(("X-Forwarded-For", value.encode("latin-1")) for value in values))
    expected = general(asked, trust)
    for _ in range(2):
        address, sure = client_of(asked, trust)
        assert (address[2], sure) == expected
        assert client_within(asked, trust) == (sure and trust.holds(address))


def test_what_is_remembered_of_peers_is_bounded() -> None:
    """In number and in length: a server may have taken them out of a header."""
    trust = Trust(OURS)
    for number in range(2 * MAX_PEERS):
        assert trust.peer(f"10.0.{number >> 8}.{number & 255}")[1]
        assert trust.peer(f"[fd00::{number:x}]{'x' * 1000}")[1]
    assert len(trust._peers) <= MAX_PEERS
    assert max(map(len, trust._peers)) <= 16
