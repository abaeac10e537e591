"""Sizing laws about coming in: gateway, server, admission, tiers and endpoints against each other."""

from __future__ import annotations

import math

from headworks.policy.findings import Finding, Findings, implies, paced, per_minute, tightest
from headworks.policy.mistakes import dotted
from headworks.policy.settings import Policy
from headworks.policy.units import duration_text as text

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
    need = admission.max_in_flight + admission.websockets + HEADROOM
    if admission.server_backstop < need:
        yield Finding(
            "admission.limit_concurrency",
            f"the server refuses at {admission.server_backstop} connections, admission only at "
            f"{admission.max_in_flight} requests and {admission.websockets} websockets, and {HEADROOM} "
            "more are needed for probes and idle connections: the server would refuse probes under "
            "load, and the pod be killed for it",
            f"admission.limit_concurrency = {need} or more, or leave it out",
            "error",
        )


def the_line_leaves_time_to_be_served(policy: Policy) -> Findings:
    """Who has waited in the pod's line still has most of its time to be served in."""
    queue, sla = policy.admission.queue_timeout, policy.service.sla
    if queue > sla / 2:
        yield Finding(
            "admission.queue_timeout",
            f"of its {text(sla)} a request may spend {text(queue)} in line for a place: it is let in "
            "when its time is nearly over, and its place is spent on an answer that comes too late",
            f'admission.queue_timeout = "{text(round(sla / 6, 3))}", a sixth of service.sla',
            "warning",
        )


def somebody_may_state_a_class(policy: Policy) -> Findings:
    """Where a header may state a request's class, there is somebody whose word counts."""
    header = policy.admission.criticality_header
    if header is not None and not policy.service.trust:
        yield Finding(
            "admission.criticality_header",
            f"{header} is believed from service.trust only, which is empty: it never decides",
            "service.trust with the networks of those callers, or leave it out",
            "warning",
        )


def a_shadow_protects_nobody(policy: Policy) -> Findings:
    """Admission that only watches is meant to be for a while."""
    if policy.admission.shadow:
        yield Finding(
            "admission.shadow",
            "admission refuses nobody and has no line: this pod is not protected from load",
            "admission.shadow = false, once the numbers have been seen to fit",
            "warning",
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
    tiers = [tier.rate for tier in fairness.tiers.values()]
    for path, limits in fairness.endpoints.items():
        for i, limit in enumerate(limits):
            if limit.scope == "user" and all(implies(tier, limit.rate) for tier in tiers):
                widest = max(tiers, key=lambda rate: rate.per_second)
                place = (path, i, "rate") if len(limits) > 1 else (path, "rate")
                yield Finding(
                    dotted(("fairness", "endpoints", *place)),
                    f"{limit.rate} per user never decides: every tier is as tight or tighter, the "
                    f"widest {widest}; two controls do the same job",
                    f'leave "{path}" out, or make it less than {widest}',
                    "warning",
                )


def tenants_get_more_than_one_key(policy: Policy) -> Findings:
    """What a tenant's keys get together is more than one of them gets, or the tier never decides."""
    for name, tier in policy.fairness.tiers.items():
        if tier.tenant_rate is not None and implies(tier.tenant_rate.rate, tier.rate):
            yield Finding(
                f"fairness.tiers.{name}.tenant_rate",
                f"{tier.tenant_rate.rate} for all keys of a tenant leaves none of them {tier.rate}: the "
                "tier's own rate never decides",
                f"fairness.tiers.{name}.tenant_rate above {tier.rate}, or a lower rate",
                "warning",
            )


def exempt_paths_have_no_limits(policy: Policy) -> Findings:
    """A path is exempt, or has limits of its own, not both."""
    fairness = policy.fairness
    for path in fairness.exempt:
        if path in fairness.endpoints:
            yield Finding(
                "fairness.exempt",
                f'"{path}" asks no limits, so those in fairness.endpoints."{path}" never decide',
                "take it out of one of them",
                "warning",
            )


def _and(names: list[str]) -> str:
    return " and of ".join(f"vendors.{name}" for name in names)


LAWS = (
    one_address_is_not_everyone,
    edge_lets_tiers_through,
    server_stays_behind_admission,
    the_line_leaves_time_to_be_served,
    somebody_may_state_a_class,
    a_shadow_protects_nobody,
    probes_have_a_port_of_their_own,
    pods_share_a_store,
    tiers_fit_the_contracts,
    endpoints_are_narrower_than_tiers,
    tenants_get_more_than_one_key,
    exempt_paths_have_no_limits,
)
