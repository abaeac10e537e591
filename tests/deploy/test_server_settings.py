"""The server's flags come from the policy."""

from __future__ import annotations

import resource

import pytest
import uvicorn

from headworks.deploy.server import server_settings, within_open_files
from headworks.policy.load import parse
from headworks.policy.settings import Policy


def policy(**tables: object) -> Policy:
    base: dict[str, object] = {
        "schema": 1,
        "service": {"name": "pod", "sla": "30s"},
        "fairness": {"default_tier": "free", "tiers": {"free": {"rate": "10/min"}}},
    }
    return parse(base | tables, environ={})


def test_the_backstop_stands_above_admission_so_that_it_never_decides() -> None:
    settings = server_settings(policy(admission={"max_in_flight": 100, "max_websockets": 50}))
    assert settings.limit_concurrency == 10_150
    assert server_settings(policy(admission={"limit_concurrency": 500})).limit_concurrency == 500


def test_requests_in_flight_get_the_services_whole_budget_to_end() -> None:
    """And a second more, for answers that are ended then to say so."""
    assert server_settings(policy()).timeout_graceful_shutdown == 31
    assert server_settings(policy(health={"drain_timeout": "7s"})).timeout_graceful_shutdown == 8


def test_an_idle_connection_is_never_dropped_before_the_policy_says() -> None:
    assert server_settings(policy(admission={"keep_alive": "1500ms"})).timeout_keep_alive == 2


def test_the_server_itself_believes_no_forwarding_header() -> None:
    assert server_settings(policy()).proxy_headers is False


def test_the_port_is_the_policys_unless_another_is_asked_for() -> None:
    assert server_settings(policy(deploy={"port": 9001})).port == 9001
    assert server_settings(policy(deploy={"port": 9001}), port=9002).port == 9002


def test_uvicorn_takes_every_one_of_them() -> None:
    arguments = server_settings(policy()).arguments()
    config = uvicorn.Config(lambda: None, **arguments)
    assert {name: getattr(config, name) for name in arguments} == arguments


@pytest.mark.parametrize(
    ("soft", "hard", "then", "backstop"),
    [
        (1_024, resource.RLIM_INFINITY, 65_536, 10_200),
        (1_024, 1_024, 1_024, 640),
        (1_024, 4_096, 4_096, 3_712),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, resource.RLIM_INFINITY, 10_200),
        (50_000, 50_000, 50_000, 10_200),
    ],
)
def test_the_backstop_stays_below_the_files_that_the_process_may_open(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, then: int, backstop: int
) -> None:
    """Raised as far as need be; where that is not far enough, the server refuses before it chokes."""
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, both: limits.append(both))
    found = policy(admission={"max_in_flight": 100})
    assert within_open_files(server_settings(found), found).limit_concurrency == backstop
    assert limits[-1] == (then, hard)
