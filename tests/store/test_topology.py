"""From a URL to the servers: what is understood, what is refused, and how each way heals."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.store import servers

from headworks.limits.shapes import Window
from headworks.store.cluster import Cluster
from headworks.store.ladder import LadderStore
from headworks.store.protocol import Ask, Question, StoreDown
from headworks.store.scripts import script
from headworks.store.sentinel import Primary
from headworks.store.topology import link_to
from headworks.store.valkey import ValkeyStore
from headworks.store.wire import Server
from headworks.verdict import Verdict

HUNDRED = Window.of(100, 60)


def one(key: str, cost: int = 1) -> Question:
    return Question((Ask("limit", key, HUNDRED, cost),))


async def test_a_plain_url_names_one_server() -> None:
    link = link_to("valkey://me:p%40ss@store:7000/3")
    assert isinstance(link, Server)
    end = link.endpoint
    assert (end.host, end.port, end.username, end.password) == ("store", 7000, "me", "p@ss")
    assert (end.database, end.tls) == (3, None)


@pytest.mark.parametrize("scheme", ["valkeys", "rediss", "REDISS"])
async def test_an_s_means_tls(scheme: str) -> None:
    link = link_to(f"{scheme}://[::1]")
    assert isinstance(link, Server)
    assert (link.endpoint.host, link.endpoint.port) == ("::1", 6379)
    assert link.endpoint.tls is not None


async def test_sentinels_have_their_own_user() -> None:
    url = "redis+sentinel://me:secret@a,b:26380/main/2?sentinel_username=s&sentinel_password=t%26u"
    link = link_to(url)
    assert isinstance(link, Primary)
    assert link._name == "main"
    assert (link._template.password, link._template.database) == ("secret", 2)
    ends = [sentinel.endpoint for sentinel in link._sentinels]
    assert [(end.host, end.port) for end in ends] == [("a", 26379), ("b", 26380)]
    assert {(end.username, end.password, end.database) for end in ends} == {("s", "t&u", 0)}


async def test_a_cluster_is_found_through_any_of_its_nodes() -> None:
    link = link_to("valkey+cluster://a:7000,b")
    assert isinstance(link, Cluster)
    assert link._seeds == [("a", 7000), ("b", 6379)]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://host", "begins like valkey://"),
        ("host:6379", "begins like valkey://"),
        ("valkey://", "begins like valkey://"),
        ("valkey+nonsense://host", "begins like"),
        ("unix+cluster:///run/x", "not a socket"),
        ("valkey://a,b", "takes one host"),
        ("valkey://host:port", "'host:port' is not a host and port"),
        ("valkey://host:99999", "is not a host and port"),
        ("valkey+cluster://a,,b", "'' is not a host and port"),
        ("valkey://host/name", "database is a number, not 'name'"),
        ("valkey+sentinel://host", "name the primary"),
        ("valkey+cluster://host/1", "database 0 only"),
        ("valkey://me:secret@host?timeout=3", "unknown parameter, 'timeout'"),
        ("valkey://host?sentinel_username=me", "unknown parameter"),
        ("valkeys://me:secret@host?ssl_ca_certs=/nowhere", "No such file"),
    ],
)
async def test_a_bad_url_is_refused_and_the_password_never_shown(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as refusal:
        link_to(url)
    assert "secret" not in str(refusal.value)


@pytest.mark.real
async def test_acl_and_tls_are_enforced(redis_server: Any) -> None:
    store = ValkeyStore(redis_server.url)
    assert (await store.ask(one("k"))).allowed
    await store.aclose()
    for wrong, why in [
        (redis_server.url.replace("s3%26cr%3At", "secret"), "WRONGPASS"),
        (redis_server.url.partition("?")[0], "CERTIFICATE_VERIFY_FAILED"),
        (redis_server.url.replace("rediss", "redis").partition("?")[0], "connection"),
    ]:
        stranger = ValkeyStore(wrong)
        with pytest.raises(StoreDown, match=why) as failure:
            await stranger.ask(one("k"))
        assert "secret" not in str(failure.value)
        await stranger.aclose()


@pytest.mark.real
async def test_a_moved_slot_is_followed_and_remembered(cluster: Any) -> None:
    """A client with an old map is sent on once, and keeps what it learnt."""
    store = ValkeyStore(cluster.url)
    await store.ask(one("k"))
    link: Any = store._link
    right = ("127.0.0.1", cluster.node_of("hw1:w:k").port)
    wrong = next(a for a in link._homes if a != right)
    slot = link.slot("hw1:w:k")
    link._homes[slot] = wrong
    assert (await store.ask(one("k"))).limits[0].remaining == 98
    assert link._homes[slot] == right
    await store.aclose()


@pytest.mark.real
async def test_a_slot_on_its_way_is_asked_for_where_it_went(cluster: Any) -> None:
    """ASKING and what it is for take the same connection, with many callers at once; and nothing is
    counted twice or lost while the slot moves."""
    store = ValkeyStore(cluster.url)
    key = "hw1:w:{moving}"
    source = cluster.node_of(key)
    target = next(node for node in cluster.nodes if node is not source)
    slot = source.client.execute_command("CLUSTER KEYSLOT", key)
    ids = {n: n.client.execute_command("CLUSTER MYID").decode() for n in (source, target)}
    for node in cluster.nodes:
        node.client.script_flush()
    target.client.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[source])
    source.client.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target])
    try:
        verdicts = await asyncio.gather(*(store.ask(one("{moving}")) for _ in range(300)))
        assert sum(verdict.allowed for verdict in verdicts) == 100
        assert not (await store.ask(one("{moving}"))).allowed
    finally:
        for command in ("ASKING", f"DEL {key}"):
            target.client.execute_command(*command.split())
        for node in cluster.nodes:
            node.client.execute_command("CLUSTER SETSLOT", slot, "STABLE")
    await store.aclose()


@pytest.mark.real
async def test_a_cluster_is_found_when_the_first_node_named_is_gone(cluster: Any) -> None:
    store = ValkeyStore(f"valkey+cluster://127.0.0.1:1,{cluster.url.partition('//')[2]}")
    assert (await store.ask(one("k"))).allowed
    await store.aclose()
    lost = ValkeyStore("valkey+cluster://127.0.0.1:1")
    with pytest.raises(StoreDown, match="no node of the cluster"):
        await lost.ask(one("k"))
    await lost.aclose()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[servers.Server, servers.Server, servers.Server]]:
    """A primary, its replica, and a sentinel that watches them."""
    for name in ("primary", "replica", "sentinel"):
        (tmp_path / name).mkdir()
    primary = servers.Server(tmp_path / "primary", repl_diskless_sync_delay="0")
    replica = servers.Server(tmp_path / "replica", replicaof=f"127.0.0.1 {primary.port}")
    config = tmp_path / "sentinel" / "sentinel.conf"
    config.write_text(
        f"sentinel monitor main 127.0.0.1 {primary.port} 1\nsentinel failover-timeout main 3000\n",
        "utf-8",
    )
    sentinel = servers.Sentinel(config)
    started = [primary, replica, sentinel]
    servers.until(
        lambda: replica.client.info("replication")["master_link_status"] == "up", "the replica follows"
    )
    servers.until(
        lambda: sentinel.client.execute_command("SENTINEL REPLICAS", "main"), "the sentinel knows it"
    )
    yield primary, replica, sentinel
    for server in started:
        server.close()


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[tuple[servers.ClusterOfThree, servers.Server, servers.Server]]:
    """A cluster, its node that has the slot of `k`, and that node's replica."""
    cluster = servers.ClusterOfThree(tmp_path)
    primary, replica = cluster.node_of("hw1:w:k"), servers.ClusterNode(tmp_path / "replica")
    primary.client.execute_command("CLUSTER MEET", servers.LOOPBACK, replica.port, replica.bus)
    name = primary.client.execute_command("CLUSTER MYID").decode()
    nodes = [*cluster.nodes, replica]
    for node in nodes:
        servers.until(lambda node=node: node.knows(nodes), "every node knows the replica")
    replica.client.execute_command("CLUSTER REPLICATE", name)
    servers.until(
        lambda: replica.client.info("replication").get("master_link_status") == "up",
        "the replica follows",
    )
    # Who takes it for a primary does not vote for it, and it takes over only slots that it knows of.
    for node in nodes:
        servers.until(
            lambda node=node: node.takes_for_replica(replica) and node.serves(), "every node knows all"
        )
    yield cluster, primary, replica
    for node in nodes:
        node.close()


async def _until_degraded(store: LadderStore, wanted: bool, cost: int = 1) -> Verdict:
    async with asyncio.timeout(60):
        while True:
            if (verdict := await store.ask(one("k", cost))).degraded is wanted:
                return verdict
            await asyncio.sleep(0.02)


def has_heard_all(replica: servers.Server, primary: servers.Server) -> bool:
    """Whether what the primary has written until now has reached its replica."""
    written, heard = (server.client.info("replication") for server in (primary, replica))
    return bool(heard["slave_repl_offset"] >= written["master_repl_offset"])


def knows_script(server: servers.Server) -> bool:
    """Whether it has been given the script that decides."""
    return server.client.script_exists(script("decide", "plain", "clock", "shapes", "gate").sha) == [
        True
    ]


@pytest.mark.real
@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_after_a_failover_the_new_primary_decides(watched: Any, how: str) -> None:
    """No exception reaches a caller meanwhile; a primary that hangs says nothing by itself."""
    primary, replica, sentinel = watched
    store = LadderStore(
        ValkeyStore(f"valkey+sentinel://127.0.0.1:{sentinel.port}/main"),
        rng=random.Random(4),
        decision_timeout=0.5,
    )
    await _until_degraded(store, False, cost=40)
    servers.until(lambda: has_heard_all(replica, primary), "the replica has heard")
    assert (knows_script(primary), knows_script(replica)) == (True, False)
    sentinel.client.execute_command("SENTINEL SET", "main", "down-after-milliseconds", 500)
    primary.kill() if how == "killed" else primary.freeze()
    await _until_degraded(store, True)
    await _until_degraded(store, False)
    assert replica.client.info("replication")["role"] == "master"
    assert knows_script(replica), "NOSCRIPT is healed within the call"
    verdict = await _until_degraded(store, False, cost=0)
    assert verdict.limits[0].remaining < 60, "what was taken before still counts"
    await store.aclose()


@pytest.mark.real
@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_after_a_node_of_a_cluster_fails_its_replica_decides(followed: Any, how: str) -> None:
    """The slot has a new home that has never seen the script; no exception reaches a caller."""
    cluster, primary, replica = followed
    store = LadderStore(ValkeyStore(cluster.url), rng=random.Random(4), decision_timeout=0.5)
    await _until_degraded(store, False, cost=40)
    servers.until(lambda: has_heard_all(replica, primary), "the replica has heard")
    assert (knows_script(primary), knows_script(replica)) == (True, False)
    primary.kill() if how == "killed" else primary.freeze()
    await _until_degraded(store, True)
    await _until_degraded(store, False)
    assert replica.client.info("replication")["role"] == "master"
    assert knows_script(replica), "NOSCRIPT is healed within the call"
    verdict = await _until_degraded(store, False, cost=0)
    assert verdict.limits[0].remaining < 60, "what was taken before still counts"
    await store.aclose()
