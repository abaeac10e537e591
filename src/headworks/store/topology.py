"""From a URL to a link: one server, a primary behind sentinels, or a cluster.

    valkey://user:password@host:6379/0                one server, database 0
    valkey+sentinel://host:26379,host2:26379/name/0   whoever is primary of `name` by its sentinels
    valkey+cluster://host:6379,host2:6379             a cluster, found through any of these nodes
    unix:///run/valkey.sock                           one server, over a unix socket

`redis` may stand for `valkey`; `valkeys` and `rediss` speak TLS, with the sentinels too. User and
password are for the servers that hold the state, percent-encoded where need be.

    db                      database, instead of the path
    ssl_ca_certs            file with the authorities to trust, default the system's
    ssl_certfile, ssl_keyfile, ssl_password    the client's own certificate
    ssl_check_hostname      "false" accepts a certificate for another name
    ssl_cert_reqs           "none" accepts any certificate
    sentinel_username, sentinel_password       for the sentinels, default none
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from headworks.store.batch import Link
from headworks.store.cluster import Cluster
from headworks.store.sentinel import Primary
from headworks.store.wire import DEFAULT_PORT, Endpoint, Server

SENTINEL_PORT = 26379
SCHEMES = ("valkey", "valkeys", "redis", "rediss")
EXAMPLES = "valkey://host:6379, valkey+sentinel://host:26379/name or valkey+cluster://host:6379"

_TLS = ("ca_certs", "certfile", "keyfile", "password", "check_hostname", "cert_reqs", "min_version")
_PARAMETERS = frozenset(("db", *(f"ssl_{name}" for name in _TLS)))
_FOR_SENTINELS = frozenset(("sentinel_username", "sentinel_password"))


def link_to(url: str, *, connections: int = 1) -> Link:
    """The link a URL names; nothing is connected yet.

    connections  to each server at most, ≥ 1; calls travel one behind the other on a connection, so one
                 is enough for most

    Raises `ValueError`, which never shows the password, for anything that is not such a URL.
    """
    scheme, _, rest = url.partition("://")
    base, _, kind = scheme.lower().partition("+")
    if not rest or kind not in ("", "sentinel", "cluster") or base not in (*SCHEMES, "unix"):
        raise ValueError(f"a store's URL begins like {EXAMPLES}, not with {scheme[:30]!r}")
    if base == "unix":
        if kind:
            raise ValueError(f"unix+{kind}://: {kind} needs hosts, not a socket")
        return Server(_endpoint(url), connections=connections)
    parts = urlsplit(f"{base}://{rest}")
    named = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    if unknown := sorted(named - _PARAMETERS - (_FOR_SENTINELS if kind == "sentinel" else frozenset())):
        raise ValueError(f"the store's URL has an unknown parameter, {unknown[0]!r}")
    hosts = _hosts(parts.netloc, SENTINEL_PORT if kind == "sentinel" else DEFAULT_PORT)
    path = [unquote(part) for part in parts.path.strip("/").split("/") if part]
    if kind == "sentinel":
        return _behind_sentinels(base, parts, hosts, path, connections)
    if len(hosts) > 1 and not kind:
        raise ValueError(f"{base}:// takes one host; several are for {base}+sentinel or {base}+cluster")
    server = _server(base, parts, path)
    if not kind:
        return Server(replace(server, host=hosts[0][0], port=hosts[0][1]), connections=connections)
    if server.database:
        raise ValueError("a cluster has database 0 only")
    return Cluster([replace(server, host=host, port=port) for host, port in hosts])


def _behind_sentinels(
    base: str, parts: Any, hosts: Sequence[tuple[str, int]], path: list[str], connections: int
) -> Primary:
    if not path:
        raise ValueError(f"name the primary: {base}+sentinel://host:{SENTINEL_PORT}/name")
    query = dict(parse_qsl(parts.query))
    server = _server(base, parts, path[1:])
    sentinel = replace(
        server,
        username=query.get("sentinel_username"),
        password=query.get("sentinel_password"),
        database=0,
    )
    sentinels = [replace(sentinel, host=host, port=port) for host, port in hosts]
    return Primary(path[0], sentinels, server, connections=connections)


def _server(base: str, parts: Any, path: list[str]) -> Endpoint:
    """User, password, database and TLS; host and port are still to come."""
    if len(path) > 1 or (not "".join(path).isdecimal() and path):
        raise ValueError(f"the store's database is a number, not {'/'.join(path)[:30]!r}")
    login, at, _ = parts.netloc.rpartition("@")
    query = "&".join(part for part in parts.query.split("&") if not part.startswith("sentinel_"))
    return _endpoint(urlunsplit((base, f"{login}{at}localhost", "/".join(path), query, "")))


def _endpoint(url: str) -> Endpoint:
    try:
        return Endpoint.of(url)
    except (TypeError, OSError) as error:
        raise ValueError(f"the store's URL: {error}") from None


def _hosts(netloc: str, default_port: int) -> list[tuple[str, int]]:
    hosts = []
    for part in netloc.rpartition("@")[2].split(","):
        try:
            parsed = urlsplit(f"//{part}")
            host, port = parsed.hostname, parsed.port
        except ValueError:
            raise ValueError(f"{part[:60]!r} is not a host and port") from None
        if not host or port == 0:
            raise ValueError(f"{part[:60]!r} is not a host and port")
        hosts.append((host, port or default_port))
    return hosts
