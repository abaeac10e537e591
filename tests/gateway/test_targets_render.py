"""What gateway-api, ingress-nginx and envoy files promise, beyond being valid."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import yaml
from hypothesis import given
from tests.policies import policies, shipped

from headworks.gateway import envoy, gateway_api, ingress_nginx, shares
from headworks.gateway.shares import Address
from headworks.manifest import plain
from headworks.policy.settings import Policy

PODS = [Address("10.0.0.1", 8000)]


def spec(policy: Policy, kind: str) -> Any:
    manifests = gateway_api.render(policy)
    return plain(next(found for found in manifests if found["kind"] == kind))["spec"]


def test_the_total_counts_requests_that_also_count_for_their_address() -> None:
    """A rule without a selector would be a default bucket, which those never pay into."""
    rules = spec(shipped(), "BackendTrafficPolicy")["rateLimit"]["local"]["rules"]
    assert all(rule["clientSelectors"] for rule in rules)
    assert rules[-1]["clientSelectors"] == [{"path": {"type": "PathPrefix", "value": "/"}}]
    assert [rule["clientSelectors"][0]["sourceCIDR"]["type"] for rule in rules[:-1]] == ["Distinct"] * 2


def test_in_shadow_no_limit_that_would_refuse_is_rendered() -> None:
    shadow = shipped(gateway={"mode": "shadow"})
    assert "rateLimit" not in spec(shadow, "BackendTrafficPolicy")
    controller = plain(ingress_nginx.render(shadow)[0])["data"]["location-snippet"]
    assert "limit_req_dry_run on;" in controller


def test_there_is_one_rule_for_each_would_have_buckets_of_its_own() -> None:
    assert len(spec(shipped(), "HTTPRoute")["rules"]) == 1


def test_the_version_that_counts_more_than_twenty_addresses_is_named() -> None:
    assert "1.9.2" in gateway_api.HEAD


def test_proxies_are_as_many_as_limits_are_divided_by() -> None:
    policy = shipped(gateway={"replicas": 3})
    proxy = spec(policy, "EnvoyProxy")["provider"]["kubernetes"]["envoyDeployment"]
    assert proxy["replicas"] == 3
    rules = spec(policy, "BackendTrafficPolicy")["rateLimit"]["local"]["rules"]
    assert [rule["limit"]["requests"] for rule in rules] == [33, 33, 666]


@pytest.mark.parametrize(
    ("seconds", "written"), [(0.2, "200ms"), (1.5, "1s500ms"), (65, "65s"), (7205, "7205s"), (0, "0s")]
)
def test_durations_are_written_in_whole_units(seconds: float, written: str) -> None:
    assert gateway_api.duration(seconds) == written


def test_what_a_client_wrote_about_itself_is_taken_off_unless_somebody_is_trusted() -> None:
    def removed(policy: Policy) -> list[str]:
        headers: list[str] = spec(policy, "ClientTrafficPolicy")["headers"]["earlyRequestHeaders"][
            "remove"
        ]
        return headers

    assert "x-forwarded-for" in removed(shipped())
    behind = shipped(gateway={"trust": ["10.0.0.0/8"]})
    assert "x-forwarded-for" not in removed(behind)
    detection = spec(behind, "ClientTrafficPolicy")["clientIPDetection"]
    assert detection == {"xForwardedFor": {"trustedCIDRs": ["10.0.0.0/8"]}}


def test_a_shedding_pod_is_never_thrown_out() -> None:
    assert "passive" not in spec(shipped(), "BackendTrafficPolicy")["healthCheck"]
    cluster = yaml.safe_load(envoy.render(shipped(), pods=PODS, port=1)["bootstrap.yaml"])[
        "static_resources"
    ]["clusters"][0]
    outliers = cluster["outlier_detection"]
    assert outliers["split_external_local_origin_errors"] is True
    counted = {name for name, value in outliers.items() if name.startswith("enforcing") and value}
    assert counted == {"enforcing_consecutive_local_origin_failure"}


def test_ingress_limits_stand_where_no_annotation_can_switch_them_off() -> None:
    controller, ingress = (plain(found) for found in ingress_nginx.render(shipped()))
    assert "annotations" not in ingress["metadata"]
    assert "limit_req zone=headworks_total" in controller["data"]["location-snippet"]
    assert "RETIRED" in ingress_nginx.HEAD.upper()


@given(policies)
def test_parts_of_all_gateways_never_add_up_to_more_than_the_policy(policy: Policy) -> None:
    gateways = policy.gateway.replicas
    for share, rate in (
        (shares.total(policy), policy.gateway.total_rate),
        (shares.per_ip(policy), policy.gateway.per_ip_rate),
    ):
        assert share.per_second * gateways == Fraction(rate.amount) / Fraction(rate.period)
        assert share.burst >= 1
        if rate.burst is not None and rate.burst >= gateways:
            assert share.burst * gateways <= rate.burst


def test_an_envoy_without_pods_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one pod"):
        envoy.render(shipped(), pods=[], port=8080)
