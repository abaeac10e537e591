"""Sizing laws about time: who waits for whom, and whose patience must outlast whose."""

from __future__ import annotations

from headworks.policy.findings import Finding, Findings
from headworks.policy.settings import CLEANUP, EDGE_MARGIN, Policy
from headworks.policy.units import duration_text as text


def gateway_outlasts_sla(policy: Policy) -> Findings:
    """The gateway waits longer than a request may take, so that the pod's own answer arrives."""
    sla, waits = policy.service.sla, policy.request_timeout
    if waits <= sla:
        yield Finding(
            "gateway.request_timeout",
            f"the gateway gives up after {text(waits)}, while a request may take service.sla = "
            f"{text(sla)}: clients get the gateway's 504, and the pod works on for nobody",
            f'gateway.request_timeout = "{text(sla + EDGE_MARGIN)}", or leave it out',
            "error",
        )


def sla_holds_a_call(policy: Policy) -> Findings:
    """A request's budget has room for one wait and one call."""
    sla = policy.service.sla
    for name, vendor in policy.vendors.items():
        need = vendor.queue_timeout + vendor.call_timeout
        if sla < need:
            yield Finding(
                "service.sla",
                f"{text(sla)} is less than vendors.{name}.queue_timeout + call_timeout = "
                f"{text(vendor.queue_timeout)} + {text(vendor.call_timeout)} = {text(need)}: a call "
                "that is in time for the vendor is too late for its request",
                f'service.sla = "{text(need)}", or shorter timeouts of the vendor',
                "error",
            )


def sla_holds_the_attempts(policy: Policy) -> Findings:
    """Says so when the deadline, not the number of attempts, will end retrying."""
    sla = policy.service.sla
    for name, vendor in policy.vendors.items():
        once = vendor.queue_timeout + vendor.call_timeout
        if once <= sla < once * vendor.attempts:
            yield Finding(
                f"vendors.{name}.attempts",
                f"{vendor.attempts} attempts of up to {text(once)} each may take "
                f"{text(once * vendor.attempts)}; service.sla = {text(sla)} ends the last of them early",
                "nothing to do if that is meant: the deadline decides",
                "note",
            )


def line_outlasts_booking(policy: Policy) -> Findings:
    """No booking lies further ahead than its caller will wait."""
    for name, vendor in policy.vendors.items():
        if vendor.limiter_timeout > vendor.queue_timeout:
            yield Finding(
                f"vendors.{name}.limiter_timeout",
                f"bookings may lie {text(vendor.limiter_timeout)} ahead, but callers wait only "
                f"queue_timeout = {text(vendor.queue_timeout)}: the rest is booked for nobody",
                f'vendors.{name}.limiter_timeout = "{text(vendor.queue_timeout)}" or less',
                "error",
            )


def call_outlasts_read(policy: Policy) -> Findings:
    """The call's own timeout is not shorter than the transport's wait for an answer."""
    for name, vendor in policy.vendors.items():
        if vendor.call_timeout < vendor.timeouts.read:
            yield Finding(
                f"vendors.{name}.call_timeout",
                f"{text(vendor.call_timeout)} is less than timeouts.read = "
                f"{text(vendor.timeouts.read)}: the read timeout can never fire",
                f'vendors.{name}.call_timeout = "{text(vendor.timeouts.read)}", or '
                f'timeouts.read = "{text(vendor.call_timeout)}"',
                "error",
            )


def draining_outlasts_sla(policy: Policy) -> Findings:
    """A leaving pod waits as long as its longest request may take."""
    sla, drain = policy.service.sla, policy.drain_timeout
    if drain < sla:
        yield Finding(
            "health.drain_timeout",
            f"a leaving pod waits {text(drain)} for requests that may take service.sla = {text(sla)}: "
            "every rollout cuts some off",
            f'health.drain_timeout = "{text(sla)}", or leave it out',
            "error",
        )


def grace_holds_the_goodbye(policy: Policy) -> Findings:
    """A pod is not killed before it has said goodbye."""
    delay, drain = policy.health.drain_delay, policy.drain_timeout
    need = delay + drain + CLEANUP
    if policy.grace < need:
        yield Finding(
            "deploy.grace",
            f"{text(policy.grace)} is less than drain delay + drain timeout + cleanup = {text(delay)} + "
            f"{text(drain)} + {text(CLEANUP)} = {text(need)}: the pod is killed while it still serves",
            f'deploy.grace = "{text(need)}", or leave it out',
            "error",
        )


LAWS = (
    gateway_outlasts_sla,
    sla_holds_a_call,
    sla_holds_the_attempts,
    line_outlasts_booking,
    call_outlasts_read,
    draining_outlasts_sla,
    grace_holds_the_goodbye,
)
