"""Sizing laws about going out: slots, pods and paces against each vendor's contract."""

from __future__ import annotations

import math
from dataclasses import replace

from headworks.policy.findings import (
    Finding,
    Findings,
    fleet_slots,
    implies,
    number,
    per_minute,
    tightest,
)
from headworks.policy.mistakes import dotted
from headworks.policy.profiles import profile_named
from headworks.policy.settings import Policy
from headworks.policy.units import duration_text as text


def slots_have_connections(policy: Policy) -> Findings:
    """Every slot finds a connection: waiting happens in the line, not in the pool."""
    for name, vendor in policy.vendors.items():
        if vendor.slots > vendor.connections.max:
            yield Finding(
                f"vendors.{name}.slots",
                f"{vendor.slots} calls may be in flight, but connections.max = "
                f"{vendor.connections.max}: {vendor.slots - vendor.connections.max} of them would hold "
                "a quota token and wait for a connection",
                f"vendors.{name}.slots = {vendor.connections.max}, or connections.max = {vendor.slots}",
                "error",
            )


def slots_can_use_the_quota(policy: Policy) -> Findings:
    """All pods' slots together can carry what the vendor's contract allows."""
    replicas = policy.deploy.replicas
    for name, vendor in policy.vendors.items():
        quota, latency = tightest(vendor), vendor.expected_latency
        if not quota < math.inf:
            continue
        carried = fleet_slots(policy, vendor) / latency
        if carried < quota:
            slots = math.ceil(quota * latency / replicas - 1e-9)
            pods = math.ceil(quota * latency / vendor.slots - 1e-9)
            yield Finding(
                f"vendors.{name}.slots",
                f"{replicas} pods × {vendor.slots} slots / {text(latency)} = {per_minute(carried)}, "
                f"less than the quota of {per_minute(quota)}: the contract can never be used up",
                f"vendors.{name}.slots = {slots}, or deploy.replicas = {pods}",
                "warning",
            )
        elif carried > 4 * quota:
            slots = math.ceil(2 * quota * latency / replicas)
            yield Finding(
                f"vendors.{name}.slots",
                f"{replicas} pods × {vendor.slots} slots / {text(latency)} = {per_minute(carried)}, "
                f"{number(round(carried / quota, 1))} × the quota of {per_minute(quota)}: the quota "
                "decides, slots do not",
                f"nothing to do; {slots} slots per pod would still be twice what the quota fills",
                "note",
            )


def pods_have_a_share_worth_waiting_for(policy: Policy) -> Findings:
    """There are not so many pods that one pod's part of the quota comes too late for its callers."""
    replicas = policy.deploy.replicas
    for name, vendor in policy.vendors.items():
        quota = tightest(vendor)
        if quota * vendor.queue_timeout < 1:
            continue  # the pace itself is too slow: `bookings_reach_the_next_send` says so
        if quota / replicas * vendor.queue_timeout < 1:
            pods = int(quota * vendor.queue_timeout + 1e-9)
            yield Finding(
                "deploy.replicas",
                f"{replicas} pods share the {per_minute(quota)} of vendors.{name}: one call per pod "
                f"every {text(round(replicas / quota, 3))}, but callers wait only queue_timeout = "
                f"{text(vendor.queue_timeout)}: too many pods for the contract",
                f"deploy.replicas = {max(1, pods)} or fewer, or a longer vendors.{name}.queue_timeout",
                "warning",
            )


def bookings_reach_the_next_send(policy: Policy) -> Findings:
    """The next send time of an evenly paced quota lies within the horizon of bookings."""
    for name, vendor in policy.vendors.items():
        pace = 1 / tightest(vendor)
        if pace > vendor.limiter_timeout:
            ahead = text(math.ceil(pace * 10 - 1e-9) / 10)
            yield Finding(
                f"vendors.{name}.limiter_timeout",
                f"the quota allows one call every {text(round(pace, 3))}, but a booking may lie only "
                f"{text(vendor.limiter_timeout)} ahead: callers are refused whom the next send would "
                "serve",
                f'vendors.{name}.limiter_timeout = "{ahead}", and a queue_timeout as long',
                "warning",
            )


def smoothing_leaves_the_quota_usable(policy: Policy) -> Findings:
    """The local pace, where there is one, neither starves the quota nor stands idle beside it."""
    replicas = policy.deploy.replicas
    for name, vendor in policy.vendors.items():
        local, quota = vendor.smoothing, tightest(vendor)
        if local is None or not quota < math.inf:
            continue
        path = f"vendors.{name}.smoothing"
        if local.per_second >= quota and replicas > 1:
            yield Finding(
                path,
                f"{local} in each pod is not less than the whole quota of {per_minute(quota)}: it never "
                "decides, and the shared quota does its job",
                f"leave {path} out",
                "warning",
            )
        elif replicas > 1 and replicas * local.per_second < 2 * quota * (1 - 1e-9):
            need = math.ceil(2 * quota * 60 / replicas - 1e-9)
            yield Finding(
                path,
                f"{replicas} pods × {local} = {per_minute(replicas * local.per_second)}, less than 2 × "
                f"the quota of {per_minute(quota)}: when demand is uneven, busy pods wait while quota "
                "is unused",
                f'{path} = "{need}/min" or more, or leave it out',
                "warning",
            )


def share_leaves_something(policy: Policy) -> Findings:
    """The part of the account's quota that is ours is at least one unit."""
    for name, vendor in policy.vendors.items():
        for index, rate in enumerate(vendor.quota):
            if rate.amount * vendor.share < 1:
                yield Finding(
                    f"vendors.{name}.share",
                    f"{number(vendor.share)} of quota[{index}] = {rate} is less than one",
                    f"vendors.{name}.share = {number(math.ceil(1000 / rate.amount) / 1000)} or more",
                    "error",
                )


def models_are_narrower_than_the_account(policy: Policy) -> Findings:
    """A model's quota is below the account's, or it never decides."""
    for name, vendor in policy.vendors.items():
        for model, settings in vendor.models.items():
            for index, rate in enumerate(settings.quota):
                wider = [other for other in vendor.quota if implies(other, rate)]
                if wider:
                    yield Finding(
                        dotted(("vendors", name, "models", model, "quota", index)),
                        f"{rate} never decides: the account's {wider[0]} is as tight or tighter",
                        f"leave {rate} out, or make it less than {wider[0]}",
                        "warning",
                    )


def bursts_are_for_buckets(policy: Policy) -> Findings:
    """A vendor's quota states a burst only where the vendor enforces by a bucket."""
    for name, vendor in policy.vendors.items():
        mechanism = profile_named(vendor.profile).mechanism
        for index, rate in enumerate(vendor.quota):
            if rate.burst is not None and mechanism != "bucket":
                yield Finding(
                    f"vendors.{name}.quota[{index}]",
                    f"{rate}: the profile {vendor.profile} says that the vendor enforces by a "
                    f"{mechanism} window, which knows no burst",
                    f'"{replace(rate, burst=None)}", or a profile whose mechanism is a bucket',
                    "warning",
                )


LAWS = (
    slots_have_connections,
    slots_can_use_the_quota,
    pods_have_a_share_worth_waiting_for,
    bookings_reach_the_next_send,
    smoothing_leaves_the_quota_usable,
    share_leaves_something,
    models_are_narrower_than_the_account,
    bursts_are_for_buckets,
)
