"""Each sizing law: broken by one change to a sound policy, mended by the value it names."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from headworks.policy.laws import LAWS, Finding, check
from headworks.policy.load import parse

SOUND: dict[str, Any] = {
    "schema": 1,
    "service": {"name": "shop", "sla": "40s", "trust": ["10.0.0.0/8"]},
    "gateway": {"total_rate": "500/s", "per_ip_rate": "50/s"},
    "admission": {"max_in_flight": 80},
    "store": {"url": "valkey://valkey"},
    "fairness": {
        "default_tier": "free",
        "tiers": {"free": {"rate": "10/min"}, "pro": {"rate": "100/min"}},
        "endpoints": {"/chat": "20/min"},
    },
    "vendors": {
        "llm": {
            "base_url": "https://api.vendor.example/v1",
            "quota": ["600/min", "100000 tokens/min"],
            "slots": 20,
            "connections": {"max": 20},
            "attempts": 1,
        }
    },
    "deploy": {"replicas": 4},
}


def found(*changes: tuple[str, object]) -> list[Finding]:
    """What the laws say of the sound policy after changes by dotted path; None takes a setting out."""
    data = copy.deepcopy(SOUND)
    for path, value in changes:
        *tables, last = path.split(".")
        table = data
        for name in tables:
            table = table.setdefault(name, {})
        if value is None:
            del table[last]
        else:
            table[last] = value
    return check(parse(data, environ={}))


def test_a_sound_policy_breaks_no_law() -> None:
    assert found() == []


LLM = "vendors.llm"
CASES = [
    (("gateway.request_timeout", "40s"), "error", "service.sla = 40s", "45s"),
    (("service.sla", "34s"), "error", "5s + 30s = 35s", "35s"),
    ((f"{LLM}.limiter_timeout", "6s"), "error", "queue_timeout = 5s", "5s"),
    ((f"{LLM}.call_timeout", "20s"), "error", "timeouts.read = 30s", "30s"),
    (("health.drain_timeout", "39s"), "error", "service.sla = 40s", "40s"),
    (("deploy.grace", "49s"), "error", "5s + 40s + 5s = 50s", "50s"),
    (("gateway.per_ip_rate", "501/s"), "error", "501/s, all together 500/s", "25/s"),
    (("admission.limit_concurrency", 191), "error", "refuses at 191 connections", 192),
    (("admission.queue_timeout", "21s"), "warning", "of its 40s a request may spend 21s", "6.667s"),
    (("admission.shadow", True), "warning", "refuses nobody", False),
    (("management.port", 8000), "error", "8000 is deploy.port, too", 8001),
    (("store", None), "error", "deploy.replicas = 4", {"url": "valkey://valkey:6379"}),
    ((f"{LLM}.slots", 21), "error", "connections.max = 20", 20),
    (
        (f"{LLM}.slots", 9),
        "warning",
        "4 pods × 9 slots / 4s = 540/min, less than the quota of 600/min",
        10,
    ),
    (("deploy.replicas", 51), "warning", "one call per pod every 5.1s", 50),
    ((f"{LLM}.limiter_timeout", "50ms"), "warning", "one call every 100ms", "100ms"),
    (
        (f"{LLM}.smoothing", "299/min"),
        "warning",
        "4 pods × 299/min = 1196/min, less than 2 ×",
        "300/min",
    ),
    ((f"{LLM}.smoothing", "600/min"), "warning", "never decides", "599/min"),
    ((f"{LLM}.models.big.quota", "600/min"), "warning", "600/min never decides", "599/min"),
    (("fairness.tiers.pro.rate", "601/min"), "warning", "601/min, above what all vendors", "600/min"),
    (("fairness.tiers.pro.rate", "60/s"), "warning", "above gateway.per_ip_rate = 50/s", "10/s"),
    (("fairness.endpoints./chat", "100/min"), "warning", "every tier is as tight", "99/min"),
    (("fairness.tiers.pro.tenant_rate", "100/min"), "warning", "leaves none of them", "101/min"),
    (("fairness.exempt", ["/chat"]), "warning", "asks no limits", []),
    (("gateway.replicas", 21), "warning", "over gateway.replicas = 21 is less than one each", 10),
    (("gateway.per_ip_connections", 4096), "error", "one address may use 4096", 20),
    (("gateway.body_timeout", "31s"), "warning", "31s is longer than the whole upload", "30s"),
    (("gateway.upload_timeout", "10s"), "warning", "1MiB within 10s is more than 64KiB", "16s"),
    (("gateway.connect_timeout", "15s"), "warning", "3 attempts of 15s each take 45s", "7.5s"),
    (
        ("health.drain_delay", "300ms"),
        "error",
        "asks every 200ms: it sends to a pod that has gone",
        "400ms",
    ),
    (("deploy.memory", "64MiB"), "warning", "80 bodies of gateway.max_body = 1MiB are 80MiB", "160MiB"),
    (("service.trust", []), "warning", "all counted as one, the gateway", ["10.0.0.0/8"]),
    (("deploy.max_replicas", 3), "error", "scales up to 3 pods, but deploy.replicas = 4", 4),
    (("deploy.max_replicas", 51), "warning", "past what the contract can feed", 50),
]


@pytest.mark.parametrize(
    ("change", "severity", "words", "remedy"), CASES, ids=[f"{c[0][0]}={c[0][1]}" for c in CASES]
)
def test_a_broken_law_says_where_and_why_and_its_remedy_mends_it(
    change: tuple[str, object], severity: str, words: str, remedy: object
) -> None:
    path = change[0]
    broken = [finding for finding in found(change) if finding.severity != "note"]
    assert any(words in finding.message for finding in broken)
    assert {finding.severity for finding in broken} == {severity}
    assert [finding for finding in found((path, remedy)) if finding.severity != "note"] == []


def test_every_law_has_a_case_that_breaks_it() -> None:
    def blame(law: Any, *changes: tuple[str, object]) -> bool:
        data = copy.deepcopy(SOUND)
        for path, value in changes:
            *tables, last = path.split(".")
            table = data
            for name in tables:
                table = table.setdefault(name, {})
            table.pop(last, None)
            if value is not None:
                table[last] = value
        return any(law(parse(data, environ={})))

    others: list[list[tuple[str, object]]] = [
        [(f"{LLM}.attempts", 3)],
        [("admission.criticality_header", "X-Class"), ("service.trust", None)],
        [("gateway.mode", "shadow")],
        [(f"{LLM}.quota", "600/min burst 5")],
        [(f"{LLM}.quota", ["5/min"]), (f"{LLM}.share", 0.1)],
        [("gateway.replicas", 11)],
        [("deploy.store_image", "valkey:9"), ("store.url", "valkeys://cache.prod.example:6380")],
    ]
    cases = [[case[0]] for case in CASES] + others
    assert [law.__name__ for law in LAWS if not any(blame(law, *case) for case in cases)] == []


def test_a_share_of_less_than_one_is_an_error_with_the_share_that_would_do() -> None:
    broken = [
        f for f in found((f"{LLM}.quota", ["5/min"]), (f"{LLM}.share", 0.1)) if f.severity == "error"
    ]
    assert [(f.path, f.remedy) for f in broken] == [(f"{LLM}.share", f"{LLM}.share = 0.2 or more")]


def test_a_burst_means_nothing_to_a_vendor_that_counts_in_windows() -> None:
    change = (f"{LLM}.quota", "600/min burst 5")
    assert [f.path for f in found(change)] == [f"{LLM}.quota[0]"]
    assert found(change, (f"{LLM}.profile", "openai")) == []


def test_many_more_slots_than_the_quota_fills_and_many_attempts_are_only_noted() -> None:
    notes = found((f"{LLM}.slots", 200), (f"{LLM}.connections.max", 200), (f"{LLM}.attempts", 3))
    assert [(f.path, f.severity) for f in notes] == [
        (f"{LLM}.attempts", "note"),
        (f"{LLM}.slots", "note"),
    ]


def test_a_header_that_nobody_may_send_is_pointed_out() -> None:
    change = ("admission.criticality_header", "X-Class")
    nobody = [f.path for f in found(change, ("service.trust", None))]
    assert nobody == ["admission.criticality_header", "service.trust"]
    assert found(change) == []


def test_the_account_share_counts_as_the_quota() -> None:
    assert any("300/min" in f.message for f in found((f"{LLM}.share", 0.5), (f"{LLM}.slots", 4)))


def test_one_pod_needs_no_store_and_tokens_alone_set_no_pace() -> None:
    assert found(("store", None), ("deploy.replicas", 1), (f"{LLM}.quota", "100000 tokens/min")) == []


def test_the_source_designs_smoothing_of_80_per_minute_starves_its_own_quota() -> None:
    """Ten pods at 80/min for 500/min: fine only while demand is even."""
    source = [(f"{LLM}.quota", "500/min"), ("deploy.replicas", 10), (f"{LLM}.smoothing", "80/min")]
    (finding,) = [f for f in found(*source) if f.severity != "note"]
    assert "10 pods × 80/min = 800/min, less than 2 × the quota of 500/min" in finding.message
    assert '"100/min" or more' in finding.remedy


def test_gateways_that_ask_too_often_are_told_how_often_would_do() -> None:
    many = [("gateway.replicas", 20), ("gateway.check_interval", "100ms")]
    (finding,) = found(*many)
    assert "200 checks a second" in finding.message
    assert finding.remedy == 'gateway.check_interval = "400ms"'
    assert found(many[0], ("gateway.check_interval", "400ms")) == []


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("valkey://valkey:6379", None),
        ("valkey://valkey.shop:6379", None),
        ("valkey://valkey.shop.svc", None),
        ("valkeys://valkey:6379", "names valkey"),
        ("valkey+sentinel://a:1,b:2/main", "names a"),
        ("valkey://cache.prod.example", "names cache.prod.example"),
        ({"env": "STORE_URL"}, "a reference to another"),
        (None, "there is no [store]"),
    ],
)
def test_a_valkey_that_nobody_asks_is_not_run(url: object, asked: str | None) -> None:
    image = ("deploy.store_image", "valkey:9")
    broken = [f for f in found(image, ("store", url and {"url": url})) if f.path == image[0]]
    assert [asked in f.message for f in broken if asked] == [True] * (asked is not None)


def test_scaling_up_for_a_vendor_that_is_already_used_up_is_noted() -> None:
    (note,) = found(("deploy.max_replicas", 10))
    assert note.severity == "note"
    assert "2 pods × 20 slots / 4s already fill the 600/min" in note.message
