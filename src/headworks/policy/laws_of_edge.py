"""Sizing laws about the edge and the deployment: gateways side by side, pods that leave, and scaling."""

from __future__ import annotations

import math
from urllib.parse import urlsplit

from headworks.policy.findings import Finding, Findings, number, per_minute, tightest
from headworks.policy.settings import Policy
from headworks.policy.units import duration_text as text
from headworks.policy.units import size_text

LEAST_PACE = 64 * 1024
"""Bytes per second at which a slow but honest client uploads."""
MOST_CHECKS = 50
"""Readiness checks per second that a pod does not notice."""


def gateways_hold_a_part_each(policy: Policy) -> Findings:
    """Gateways that count apart can be given at least one of what they share."""
    gateway = policy.gateway
    if gateway.per_ip_connections < gateway.replicas:
        yield Finding(
            "gateway.per_ip_connections",
            f"{gateway.per_ip_connections} over gateway.replicas = {gateway.replicas} is less than one "
            f"each; each has to allow one, and together they allow {gateway.replicas}",
            f"gateway.per_ip_connections = {gateway.replicas} or more, or fewer gateways",
            "warning",
        )
    for name, rate in (("total_rate", gateway.total_rate), ("per_ip_rate", gateway.per_ip_rate)):
        if rate.per_second * 60 < gateway.replicas:
            yield Finding(
                f"gateway.{name}",
                f"{rate} over gateway.replicas = {gateway.replicas} is less than one a minute each, the "
                "least that an edge can count",
                f'gateway.{name} = "{gateway.replicas}/min" or more, or fewer gateways',
                "warning",
            )


def one_address_is_not_every_connection(policy: Policy) -> Findings:
    """One address cannot hold all of a gateway's connections."""
    gateway = policy.gateway
    if gateway.per_ip_connections >= gateway.connections:
        yield Finding(
            "gateway.connections",
            f"a gateway holds {gateway.connections} connections, and one address may use "
            f"{gateway.per_ip_connections}: it can keep everybody else out",
            f"gateway.connections = {20 * gateway.per_ip_connections}, twenty times one address",
            "error",
        )


def uploads_have_time(policy: Policy) -> Findings:
    """The largest body can arrive in time from a slow client, and a pause is shorter than the whole."""
    gateway = policy.gateway
    if gateway.body_timeout > gateway.upload_timeout:
        yield Finding(
            "gateway.body_timeout",
            f"a pause of {text(gateway.body_timeout)} is longer than the whole upload may take, "
            f"{text(gateway.upload_timeout)}: it never decides",
            f'gateway.body_timeout = "{text(gateway.upload_timeout)}" or less',
            "warning",
        )
    if gateway.max_body / gateway.upload_timeout > LEAST_PACE:
        need = math.ceil(gateway.max_body / LEAST_PACE)
        yield Finding(
            "gateway.upload_timeout",
            f"{size_text(gateway.max_body)} within {text(gateway.upload_timeout)} is more than "
            f"{size_text(LEAST_PACE)} a second: a slow line cannot send what the policy allows",
            f'gateway.upload_timeout = "{text(need)}", or a smaller gateway.max_body',
            "warning",
        )


def attempts_fit_the_wait(policy: Policy) -> Findings:
    """The gateway has tried every pod it may try before it gives up."""
    gateway = policy.gateway
    need = gateway.attempts * gateway.connect_timeout
    if need >= policy.request_timeout:
        yield Finding(
            "gateway.connect_timeout",
            f"{gateway.attempts} attempts of {text(gateway.connect_timeout)} each take {text(need)}, "
            f"but the gateway gives up after {text(policy.request_timeout)}: the last is never made",
            f'gateway.connect_timeout = "{text(policy.request_timeout / gateway.attempts / 2)}" or less',
            "warning",
        )


def leaving_is_seen(policy: Policy) -> Findings:
    """A leaving pod serves on until the gateway has asked it twice."""
    delay, need = policy.health.drain_delay, 2 * policy.gateway.check_interval
    if delay < need:
        yield Finding(
            "health.drain_delay",
            f"a leaving pod serves on for {text(delay)}, and the gateway asks every "
            f"{text(policy.gateway.check_interval)}: it sends to a pod that has gone",
            f'health.drain_delay = "{text(need)}" or more, or a shorter gateway.check_interval',
            "error",
        )


def checks_are_no_load(policy: Policy) -> Findings:
    """All gateways' checks together are nothing to a pod."""
    gateway = policy.gateway
    checks = gateway.replicas / gateway.check_interval
    if checks > MOST_CHECKS:
        interval = math.ceil(10 * gateway.replicas / MOST_CHECKS) / 10
        yield Finding(
            "gateway.check_interval",
            f"{gateway.replicas} gateways that ask every {text(gateway.check_interval)} are "
            f"{number(checks)} checks a second for each pod",
            f'gateway.check_interval = "{text(interval)}"',
            "warning",
        )


def bodies_fit_into_memory(policy: Policy) -> Findings:
    """A pod full of the largest bodies is not killed for its memory."""
    most = policy.admission.max_in_flight * policy.gateway.max_body
    if most > policy.deploy.memory:
        yield Finding(
            "deploy.memory",
            f"admission.max_in_flight = {policy.admission.max_in_flight} bodies of gateway.max_body = "
            f"{size_text(policy.gateway.max_body)} are {size_text(most)}, more than a pod's "
            f"{size_text(policy.deploy.memory)}: it would be killed in the middle of its work",
            f'deploy.memory = "{size_text(2 * most)}", or a smaller gateway.max_body',
            "warning",
        )


def pods_know_their_clients(policy: Policy) -> Findings:
    """Pods behind a gateway believe it, or every caller has the gateway's address."""
    if policy.deploy.replicas > 1 and not policy.service.trust:
        yield Finding(
            "service.trust",
            f"{policy.deploy.replicas} pods stand behind a gateway that they do not believe: callers "
            "without a known key are all counted as one, the gateway",
            'service.trust = ["10.0.0.0/8"], or wherever the gateway is',
            "warning",
        )


def the_autoscaler_has_room(policy: Policy) -> Findings:
    """The most pods are not fewer than the least."""
    least, most = policy.deploy.replicas, policy.deploy.max_replicas
    if most is not None and most < least:
        yield Finding(
            "deploy.max_replicas",
            f"scales up to {most} pods, but deploy.replicas = {least} always run",
            f"deploy.max_replicas = {least} or more, or leave it out",
            "error",
        )


def scaling_stays_within_the_contract(policy: Policy) -> Findings:
    """Scaled up, each pod's part of every quota still comes in time for its callers."""
    most = policy.deploy.max_replicas or 0
    for name, vendor in policy.vendors.items():
        quota = tightest(vendor)
        if most <= policy.deploy.replicas or quota == math.inf:
            continue
        fed = int(quota * vendor.queue_timeout + 1e-9)
        enough = max(1, math.ceil(quota * vendor.expected_latency / vendor.slots - 1e-9))
        if most > fed:
            yield Finding(
                "deploy.max_replicas",
                f"{most} pods would share the {per_minute(quota)} of vendors.{name}: one call per pod "
                f"every {text(round(most / quota, 3))}, but callers wait only queue_timeout = "
                f"{text(vendor.queue_timeout)}: scaling goes past what the contract can feed",
                f"deploy.max_replicas = {max(policy.deploy.replicas, fed)} or fewer, "
                f"or a longer vendors.{name}.queue_timeout",
                "warning",
            )
        elif most > enough:
            yield Finding(
                "deploy.max_replicas",
                f"{enough} pods × {vendor.slots} slots / {text(vendor.expected_latency)} already fill "
                f"the {per_minute(quota)} of vendors.{name}: more pods make no more calls to it",
                "nothing to do if pods are added for other work",
                "note",
            )


def the_rendered_store_is_the_one_asked(policy: Policy) -> Findings:
    """A Valkey is run beside the pods only if it is the one they ask."""
    store, image = policy.store, policy.deploy.store_image
    if image is None:
        return
    if store is None or store.url.kind != "literal":
        asked = "there is no [store]" if store is None else "store.url is a reference to another"
    else:
        parts = urlsplit(store.url.name)
        host = parts.hostname or ""
        if parts.scheme in ("valkey", "redis") and (
            "." not in host or host.endswith((f".{policy.namespace}", f".{policy.namespace}.svc"))
        ):
            return
        asked = f"store.url names {host}, which is run elsewhere"
    yield Finding(
        "deploy.store_image",
        f"a Valkey is run beside the pods, and nobody asks it: {asked}",
        'store.url = "valkey://valkey:6379", or leave deploy.store_image out',
        "error",
    )


def the_gateway_in_shadow_protects_nobody(policy: Policy) -> Findings:
    """A gateway that only marks what it would refuse is meant to be for a while."""
    if policy.gateway.mode == "shadow":
        yield Finding(
            "gateway.mode",
            "the gateway refuses nothing for its rate: pods see every flood, marked",
            'gateway.mode = "enforce", once what is marked is what should be refused',
            "warning",
        )


LAWS = (
    gateways_hold_a_part_each,
    one_address_is_not_every_connection,
    uploads_have_time,
    attempts_fit_the_wait,
    leaving_is_seen,
    checks_are_no_load,
    bodies_fit_into_memory,
    pods_know_their_clients,
    the_autoscaler_has_room,
    scaling_stays_within_the_contract,
    the_rendered_store_is_the_one_asked,
    the_gateway_in_shadow_protects_nobody,
)
