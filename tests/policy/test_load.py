"""From a file and the environment to a policy, or to every mistake at once."""

from __future__ import annotations

import copy
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headworks.errors import PolicyError
from headworks.policy.laws import check
from headworks.policy.load import load, parse
from headworks.policy.units import Rate

SHIPPED = Path(__file__).parents[2] / "examples" / "service" / "headworks.toml"
BROKEN = Path(__file__).parent / "broken"

MISTAKES = {
    "unknown-key": ("admission.max_inflight", "did you mean 'max_in_flight'?"),
    "out-of-range": ("service.sla", "'2h' is out of range; allowed is 100ms to 1h"),
    "bad-rate": ('fairness.endpoints."/chat".rate', "'20 a minute' is not a rate"),
    "unknown-tier": ("fairness.default_tier", "there is no tier 'fre'; did you mean 'free'?"),
    "password-in-url": ("store.url", "holds a password"),
    "slots-above-connections": (
        "vendors.llm.slots",
        "30 calls may be in flight, but connections.max = 20",
    ),
    "sla-below-call": ("service.sla", "5s + 30s = 35s"),
    "booking-beyond-waiting": ("vendors.llm.limiter_timeout", "callers wait only queue_timeout = 5s"),
    "address-above-total": ("gateway.per_ip_rate", "833.333/s, all together 500/s"),
    "pods-without-store": ("store", "deploy.replicas = 4"),
}


def shipped() -> dict[str, Any]:
    return tomllib.loads(SHIPPED.read_text(encoding="utf-8"))


def problems(data: dict[str, Any], environ: dict[str, str] | None = None) -> dict[str, str]:
    with pytest.raises(PolicyError) as error:
        parse(data, "test", environ or {})
    return {problem.path: problem.message for problem in error.value.problems}


def test_there_is_a_broken_policy_for_every_mistake() -> None:
    assert sorted(path.stem for path in BROKEN.glob("*.toml")) == sorted(MISTAKES)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_policy_with_one_mistake_is_told_exactly_that_mistake(name: str) -> None:
    path, words = MISTAKES[name]
    try:
        policy = load(BROKEN / f"{name}.toml", {})
    except PolicyError as error:
        found = [(problem.path, problem.message) for problem in error.problems]
    else:
        found = [(finding.path, finding.message) for finding in check(policy)]
    assert [place for place, _ in found] == [path]
    assert words in found[0][1]


def test_the_shipped_policy_is_sound_and_says_what_the_design_says() -> None:
    policy = load(SHIPPED, {})
    assert [finding for finding in check(policy) if finding.severity != "note"] == []
    assert policy.fairness.tiers["free"].rate == Rate(10, 60.0)
    assert policy.fairness.endpoints["/chat"][0].rate == Rate(20, 60.0)
    assert policy.vendors["llm"].quota == (Rate(500, 60.0), Rate(200_000, 60.0, "tokens"))
    assert (policy.deploy.replicas, policy.admission.max_in_flight, policy.vendors["llm"].slots) == (
        10,
        100,
        50,
    )


def test_several_mistakes_are_told_at_once() -> None:
    data = shipped()
    data["service"]["sla"] = "forever"
    data["gatway"] = {}
    data["vendors"]["llm"]["quota"] = ["500/min", "oops"]
    data["fairness"]["default_tier"] = "gold"
    data["vendors"]["llm"]["profile"] = "opnai"
    data["vendors"]["search"].pop("base_url")
    found = problems(data)
    assert set(found) == {
        "service.sla",
        "gatway",
        "vendors.llm.quota[1]",
        "fairness.default_tier",
        "vendors.llm.profile",
        "vendors.search.base_url",
    }
    assert "did you mean 'gateway'?" in found["gatway"]
    assert "did you mean 'openai'?" in found["vendors.llm.profile"]
    assert found["vendors.search.base_url"] == "is missing, and has no default"


@pytest.mark.parametrize(
    ("place", "value", "path", "words"),
    [
        (("schema",), 2, "schema", "out of range; allowed is 1"),
        (("service", "trust"), ["10.0.0.1/8"], "service.trust[0]", 'the network is "10.0.0.0/8"'),
        (("service", "app"), "main.py", "service.app", "module:attribute"),
        (("gateway",), "fast", "gateway", "is not a table"),
        (("gateway", "max_body"), "9GiB", "gateway.max_body", "allowed is 1B to 1GiB"),
        (("admission", "max_in_flight"), True, "admission.max_in_flight", "not a whole number"),
        (("fairness", "tiers"), {}, "fairness.tiers", "is empty"),
        (("fairness", "tiers", "free", "class"), "vip", "fairness.tiers.free.class", '"sheddable"'),
        (
            ("fairness", "tiers", "free", "criticality"),
            "default",
            "fairness.tiers.free.criticality",
            "class",
        ),
        (
            ("fairness", "tiers", "free", "rate"),
            "10 tokens/min",
            "fairness.tiers.free.rate",
            "counts requests",
        ),
        (("fairness", "endpoints"), {"chat": "1/s"}, "fairness.endpoints.chat", '"/chat"'),
        (
            ("fairness", "endpoints"),
            {"/x": {"rate": "1/s", "scop": "all"}},
            'fairness.endpoints."/x".scop',
            "'scope'",
        ),
        (
            ("fairness", "endpoints"),
            {"/x": ["1/s", {"rate": "1/min", "scop": "all"}]},
            'fairness.endpoints."/x"[1].scop',
            "'scope'",
        ),
        (("fairness", "endpoints"), {"/x": []}, 'fairness.endpoints."/x"', "limits nothing"),
        (("fairness", "endpoints"), {"/x": ["1/s", "2/s"]}, 'fairness.endpoints."/x"', "the tighter"),
        (("fairness", "endpoints"), {"/x": 3}, 'fairness.endpoints."/x"', "not a table"),
        (("fairness", "mode"), "on", "fairness.mode", '"enforce", "shadow", "off"'),
        (("fairness", "total_rate"), "many", "fairness.total_rate.rate", "not a rate"),
        (("fairness", "exempt"), ["chat"], "fairness.exempt[0]", '"/chat"'),
        (("service", "reload"), "10ms", "service.reload", "100ms to 1h"),
        (
            ("fairness", "keys"),
            {"k": {"tier": "free", "tenant": "a b"}},
            "fairness.keys.k.tenant",
            "visible ASCII",
        ),
        (("fairness", "identity"), "cookie:id", "fairness.identity", '"header:NAME"'),
        (("fairness", "keys"), {"k": "gold"}, "fairness.keys.k", "there is no tier 'gold'"),
        (("vendors", "llm", "base_url"), "ftp://x", "vendors.llm.base_url", "not an http or https URL"),
        (
            ("vendors", "llm", "base_url"),
            "https://u:secret@x",
            "vendors.llm.base_url",
            "holds credentials",
        ),
        (
            ("vendors", "llm", "breaker"),
            {"probs": 1},
            "vendors.llm.breaker.probs",
            "did you mean 'probes'?",
        ),
        (("vendors", "llm", "quota"), [], "vendors.llm.quota", "is empty"),
        (
            ("vendors", "llm", "quota"),
            ["1/s", "60/min", "2/s"],
            "vendors.llm.quota",
            "limit the same thing",
        ),
        (("vendors", "llm", "share"), 0, "vendors.llm.share", "more than 0, at most 1"),
        (("vendors", "Big LLM"), {}, 'vendors."Big LLM"', "a-z, 0-9, _ and -"),
        (("store", "url"), "mysql://x", "store.url", "valkey://"),
        (("store", "url"), {"env": 1}, "store.url", "neither a text nor a reference"),
        (("store", "when_down"), "pray", "store.when_down", '"share", "open", "closed"'),
        (
            ("vendors", "llm", "when_down"),
            "open",
            "vendors.llm.when_down",
            'is not one of "share", "closed"',
        ),
    ],
)
def test_each_kind_of_mistake_names_its_field_and_what_is_allowed(
    place: tuple[str, ...], value: object, path: str, words: str
) -> None:
    data = shipped()
    table = data
    for part in place[:-1]:
        table = table[part]
    table[place[-1]] = value
    found = problems(data)
    assert path in found
    assert words in found[path]
    assert "secret" not in str(found)


def test_one_rate_may_stand_alone_where_a_list_is_allowed() -> None:
    data = shipped()
    data["vendors"]["llm"]["quota"] = "500/min"
    assert parse(data, environ={}).vendors["llm"].quota == (Rate(500, 60.0),)


def test_what_is_absent_follows_from_what_is_there() -> None:
    policy = load(SHIPPED, {})
    assert (policy.request_timeout, policy.drain_timeout, policy.grace) == (65.0, 60.0, 70.0)
    assert policy.admission.server_backstop == 10_200
    assert policy.fairness.identity_header == "x-api-key"


def test_the_environment_overrides_the_file() -> None:
    policy = load(
        SHIPPED,
        {
            "HEADWORKS_DEPLOY__REPLICAS": "3",
            "headworks_store__url": "valkey://:pw@127.0.0.1:7000",
            "HEADWORKS_VENDORS__LLM__BASE_URL": "http://127.0.0.1:9100/v1/",
            "HEADWORKS_SERVICE__SLA": "90s",
            "HEADWORKS_SERVICE__TRUST": '["127.0.0.1"]',
            "HEADWORKS_FAIRNESS__TIERS__FREE__RATE": "11/min",
            "HEADWORKS_POLICY": "no override: it has no double underscore",
        },
    )
    assert policy.deploy.replicas == 3
    assert policy.store is not None
    assert policy.store.url.reveal() == "valkey://:pw@127.0.0.1:7000"
    assert policy.vendors["llm"].base_url == "http://127.0.0.1:9100/v1"
    assert policy.service.sla == 90.0
    assert [str(network) for network in policy.service.trust] == ["127.0.0.1/32"]
    assert policy.fairness.tiers["free"].rate == Rate(11, 60.0)


def test_an_override_finds_names_with_hyphens_and_makes_missing_tables() -> None:
    data = shipped()
    data["vendors"]["azure-openai"] = data["vendors"].pop("llm")
    data.pop("store")
    environ = {"HEADWORKS_VENDORS__AZURE_OPENAI__SLOTS": "7", "HEADWORKS_STORE__URL": '{ env = "URL" }'}
    policy = parse(data, environ=environ | {"URL": "redis://r"})
    assert policy.vendors["azure-openai"].slots == 7
    assert policy.store is not None
    assert policy.store.url.reveal() == "redis://r"
    assert "store" not in data


def test_an_override_in_quotes_is_a_text_and_may_hold_a_password_too() -> None:
    policy = load(
        SHIPPED, {"HEADWORKS_STORE__URL": '"valkey://:pw@h"', "HEADWORKS_SERVICE__NAME": "'7'"}
    )
    assert policy.store is not None
    assert policy.store.url.reveal() == "valkey://:pw@h"
    assert policy.service.name == "7"


def test_a_wrong_override_names_its_variable() -> None:
    found = problems(
        shipped(),
        {
            "HEADWORKS_DEPLOY__REPLICS": "3",
            "HEADWORKS_SERVICE__SLA": "soon",
            "HEADWORKS_SERVICE__NAME__X": "1",
            "HEADWORKS_STORE__URL": "mysql://:pw@host",
        },
    )
    assert "did you mean 'replicas'?" in found["deploy.replics"]
    assert "HEADWORKS_DEPLOY__REPLICS" in found["deploy.replics"]
    assert "HEADWORKS_SERVICE__SLA" in found["service.sla"]
    assert "HEADWORKS_SERVICE__NAME__X leads through something that is no table" in found[""]
    assert "pw" not in found["store.url"]


def test_a_table_that_only_a_variable_made_names_the_variable() -> None:
    """The file does not have it, so that nobody would find the mistake there."""
    found = problems(
        shipped(),
        {
            "HEADWORKS_VENDOR__LLM__SLOTS": "3",
            "HEADWORKS_VENDORS__LMM__QUOTA": '["60/min"]',
            "HEADWORKS_VENDORS__LMM__SLOTS": "none",
        },
    )
    assert "did you mean 'vendors'? (from the variable HEADWORKS_VENDOR__LLM__SLOTS)" in found["vendor"]
    assert "(from the variable HEADWORKS_VENDORS__LMM__QUOTA)" in found["vendors.lmm.base_url"]
    assert "(from the variable HEADWORKS_VENDORS__LMM__SLOTS)" in found["vendors.lmm.slots"]


def test_a_secret_is_not_needed_to_read_a_policy() -> None:
    data = shipped()
    data["store"]["url"] = {"env": "NOT_SET"}
    policy = parse(data, environ={})
    assert policy.store is not None
    with pytest.raises(PolicyError, match=r"store\.url: the environment variable NOT_SET is not set"):
        policy.store.url.reveal()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"schema = 1\nservice = {\n[", "the file is not TOML: .*line"),
        (b"\n\n\xff", r"not UTF-8 \(line 3\)"),
        (b"", "schema: is missing"),
        (b"x = " + b"[" * 5000, "not TOML|cannot be parsed"),
        (b"x = " + b"9" * 6000, "cannot be parsed|no such setting"),
        (b"#" * 1_100_000, "has more than 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_policy_gets_one_clear_sentence(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "headworks.toml"
    path.write_bytes(content)
    with pytest.raises(PolicyError, match=words):
        load(path, {})


def test_a_file_that_cannot_be_read_gets_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="there is no such file"):
        load(tmp_path / "absent.toml", {})
    with pytest.raises(PolicyError, match="a folder, not a file"):
        load(tmp_path, {})


def test_a_policy_cannot_be_changed() -> None:
    policy = load(SHIPPED, {})
    with pytest.raises(ValueError, match="frozen"):
        policy.service.sla = 1.0  # type: ignore[misc]  # that is the point


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=6,
)


def places(table: dict[str, Any], here: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, value in table.items():
        found.append((*here, name))
        if isinstance(value, dict):
            found += places(value, (*here, name))
    return found


def is_refused_or_read(data: dict[str, Any], environ: dict[str, str]) -> None:
    try:
        check(parse(data, "junk", environ))
    except PolicyError as error:
        told = error.problems
    else:
        return
    assert all(problem.message for problem in told)


@given(place=st.sampled_from(places(shipped())), junk=JUNK, name=st.none() | st.text(max_size=10))
@settings(max_examples=150, deadline=None)
def test_junk_anywhere_in_a_policy_is_refused_and_never_crashes(
    place: tuple[str, ...], junk: object, name: str | None
) -> None:
    data = copy.deepcopy(shipped())
    table = data
    for part in place[:-1]:
        table = table[part]
    table[place[-1] if name is None else name] = junk
    is_refused_or_read(data, {})


@given(name=st.text(max_size=30), value=st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_junk_in_the_environment_is_refused_and_never_crashes(name: str, value: str) -> None:
    is_refused_or_read(
        shipped(), {f"HEADWORKS_{name}__{name[::-1]}": value, f"HEADWORKS_SERVICE__{name}": value}
    )


@given(content=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
@settings(
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_junk_in_a_file_is_refused_and_never_crashes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "junk.toml"
    path.write_bytes(content)
    with pytest.raises(PolicyError):
        load(path, {})


@pytest.mark.parametrize("scheme", ["valkey", "rediss", "redis+sentinel", "VALKEYS+CLUSTER"])
def test_a_store_may_stand_behind_sentinels_or_be_a_cluster(scheme: str) -> None:
    data = shipped()
    data["store"]["url"] = f"{scheme}://a:7000,b:7001/main"
    policy = parse(data, environ={})
    assert policy.store is not None
    assert policy.store.url.reveal() == f"{scheme}://a:7000,b:7001/main"
    data["store"]["url"] = f"{scheme}://me:hidden@a:7000,b"
    found = problems(data, {})
    assert "password" in found["store.url"]
    assert "hidden" not in found["store.url"]


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    """Editors on Windows write one; it moves no line number either."""
    marked = tmp_path / "marked.toml"
    marked.write_bytes(b"\xef\xbb\xbf" + SHIPPED.read_bytes())
    assert load(marked, {}) == load(SHIPPED, {})
    marked.write_bytes(b"\xef\xbb\xbf\n\xff\n\n")
    with pytest.raises(PolicyError, match=r"not UTF-8 \(line 2\)"):
        load(marked, {})


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    """Opening a pipe that nobody writes to would wait for ever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/null")):
        with pytest.raises(PolicyError, match="this is not a regular file"):
            load(path, {})


def test_a_key_of_a_caller_is_not_told_in_full() -> None:
    """Where it is wrong, or what is said of it: a log is no place for it."""
    for keys in (
        {"sk-0123456789": "gold"},
        {"sk-0123456789": {"tier": 3}},
        {"sk-0123456789 ": "free"},
    ):
        data = {
            "schema": 1,
            "service": {"name": "svc"},
            "fairness": {"default_tier": "free", "tiers": {"free": {"rate": "1/s"}}, "keys": keys},
        }
        with pytest.raises(PolicyError) as caught:
            parse(data, environ={})
        assert "sk-0…" in str(caught.value)
        assert "sk-0123456789" not in str(caught.value)
