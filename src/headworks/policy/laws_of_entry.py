"""Sizing laws about coming in: gateway, server, admission, tiers and endpoints against each other."""

from __future__ import annotations

import math

from headworks.policy.findings import Finding, Findings, implies, paced, per_minute, tightest
from headworks.policy.mistakes import dotted
from headworks.policy.settings import Policy

HEADROOM = 32
"""Connections above admission that probes, metrics and idle keep-alive need at the server."""


def one_address_is_not_everyone(policy: Policy) -> Findings:
    """One address may not come faster than all together."""
    one, total = policy.gateway.per_ip_rate, policy.gateway.total_rate
    if one.per_second > total.per_second:
        each = total.per_second / 20
        share = f"{int(each)}/s" if each >= 1 else f"{max(1, int(each * 60))}/min"
        yield Finding(
            "gateway.per_ip_rate",
            f"one address may send {paced(one, 's')}, all together {paced(total, 's')}: the limit per "
            "address never decides, and one address can take everything",
            f'gateway.per_ip_rate = "{share}", a twentieth of the total',
            "error",
        )


def edge_lets_tiers_through(policy: Policy) -> Findings:
    """The gateway does not refuse one caller what its tier allows."""
    edge = policy.gateway.per_ip_rate
    for name, tier in policy.fairness.tiers.items():
        if tier.rate.per_second > edge.per_second:
            yield Finding(
                f"fairness.tiers.{name}.rate",
                f"{paced(tier.rate, 's')} is above gateway.per_ip_rate = {edge}: "
                "from one address the gateway refuses first, and the two do the same job",
                f'gateway.per_ip_rate = "{math.ceil(tier.rate.per_second)}/s" or more, or a lower tier',
                "warning",
            )


def server_stays_behind_admission(policy: Policy) -> Findings:
    """The server's blunt limit, which answers probes with 503 too, is never the one to decide."""
    admission = policy.admission
    need = admission.max_in_flight + HEADROOM
    if admission.server_backstop < need:
        yield Finding(
            "admission.limit_concurrency",
            f"the server refuses at {admission.server_backstop} connections, admission only at "
            f"{admission.max_in_flight} requests, and {HEADROOM} more are needed for probes and idle "
            "connections: the server would refuse probes under load, and the pod be killed for it",
            f"admission.limit_concurrency = {need} or more, or leave it out "
            f"({2 * admission.max_in_flight + 64})",
            "error",
        )


def probes_have_a_port_of_their_own(policy: Policy) -> Findings:
    """The management port is not the service's."""
    port = policy.deploy.port
    if policy.management_port == port:
        yield Finding(
            "management.port",
            f"{port} is deploy.port, too: a pod cannot listen on it twice",
            f"management.port = {port + 1 if port < 65_535 else port - 1}, or 0 for none",
            "error",
        )


def pods_share_a_store(policy: Policy) -> Findings:
    """More than one pod needs a store: shared limits are kept there."""
    replicas = policy.deploy.replicas
    if policy.store is None and replicas > 1:
        yield Finding(
            "store",
            f"there is no [store], but deploy.replicas = {replicas}: each pod would allow every limit "
            f"in full, {replicas} × what the policy and the vendors' contracts say",
            '[store] url = "valkey://valkey:6379", or deploy.replicas = 1',
            "error",
        )


def tiers_fit_the_contracts(policy: Policy) -> Findings:
    """One caller is not promised more than the vendors together can ever serve."""
    paces = {name: tightest(vendor) for name, vendor in policy.vendors.items()}
    total = sum(paces.values())
    if not paces or total == math.inf:
        return
    for name, tier in policy.fairness.tiers.items():
        promised = tier.rate.per_second
        below = [vendor for vendor, pace in paces.items() if promised > pace * (1 + 1e-9)]
        if promised > total * (1 + 1e-9):
            parts = " + ".join(per_minute(pace) for pace in paces.values())
            allowed = f"{parts} = {per_minute(total)}" if len(paces) > 1 else parts
            yield Finding(
                f"fairness.tiers.{name}.rate",
                f"one caller is promised {paced(tier.rate)}, above what all vendors "
                f"together allow everyone: {allowed}",
                f'fairness.tiers.{name}.rate = "{max(1, math.floor(total * 60))}/min" or less',
                "warning",
            )
        elif below:
            yield Finding(
                f"fairness.tiers.{name}.rate",
                f"one caller's {tier.rate} is above the whole quota of {_and(below)}: calls beyond it "
                "are refused by the vendor's line, not by the tier",
                "nothing to do if such callers call more than one vendor, or none",
                "note",
            )


def endpoints_are_narrower_than_tiers(policy: Policy) -> Findings:
    """An endpoint's limit per user is below some tier's, or it never decides."""
    fairness = policy.fairness
    for path, limit in fairness.endpoints.items():
        if limit.scope == "user" and all(implies(t.rate, limit.rate) for t in fairness.tiers.values()):
            widest = max(fairness.tiers.values(), key=lambda tier: tier.rate.per_second).rate
            yield Finding(
                dotted(("fairness", "endpoints", path, "rate")),
                f"{limit.rate} per user never decides: every tier is as tight or tighter, the widest "
                f"{widest}; two controls do the same job",
                f'leave "{path}" out, or make it less than {widest}',
                "warning",
            )


def _and(names: list[str]) -> str:
    return " and of ".join(f"vendors.{name}" for name in names)


LAWS = (
    one_address_is_not_everyone,
    edge_lets_tiers_through,
    server_stays_behind_admission,
    probes_have_a_port_of_their_own,
    pods_share_a_store,
    tiers_fit_the_contracts,
    endpoints_are_narrower_than_tiers,
)
