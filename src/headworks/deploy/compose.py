"""The compose target: the same parts on one host, with a real Envoy in front and a real Valkey beside.

Two pods, enough to see one leave. They have fixed addresses, as Envoy's file of endpoints names them.
"""

from __future__ import annotations

import math
from typing import Any

from headworks.deploy.pod import FILE, FOLDER, LIVE, USER, probe_port
from headworks.manifest import Said, yaml
from headworks.policy.settings import Policy

HEAD = """Rendered by headworks from the policy; edit the policy instead.
docker compose up --build"""
PODS = 2
NETWORK = "10.96.0.0/24"
ENVOY, VALKEY = "envoyproxy/envoy:v1.40.0", "valkey/valkey:9.1"
"""Images that the policy does not name; pin them by digest where it matters."""


def pod_addresses() -> list[str]:
    """Where the pods are on the stack's own network."""
    return [f"10.96.0.{10 + number}" for number in range(1, PODS + 1)]


def render(policy: Policy, edge: dict[str, str]) -> dict[str, str]:
    """`compose.yaml`, and the gateway's files below `edge/`.

    edge  the files of a gateway that listens on `deploy.gateway_port` and knows `pod_addresses`
    """
    services: dict[str, Any] = {"gateway": _gateway(policy), "valkey": _valkey(policy)}
    for number, address in enumerate(pod_addresses(), start=1):
        services[f"pod-{number}"] = _pod(policy, number, address)
    network = {"config": [{"subnet": Said(NETWORK, "fixed: the gateway's and the pods' own")}]}
    content = {
        "name": policy.service.name,
        "services": services,
        "networks": {"stack": {"ipam": network}},
    }
    return {"compose.yaml": yaml([content], HEAD), **{f"edge/{n}": text for n, text in edge.items()}}


def _confined() -> dict[str, Any]:
    return {
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
    }


def _gateway(policy: Policy) -> dict[str, Any]:
    port = policy.deploy.gateway_port
    return {
        "image": Said(ENVOY, "fixed: what the files below edge/ are for"),
        "command": ["envoy", "-c", "/edge/bootstrap.yaml"],
        "working_dir": "/edge",
        "volumes": ["./edge:/edge:ro"],
        "ports": [Said(f"{port}:{port}", "deploy.gateway_port")],
        "networks": ["stack"],
        "tmpfs": ["/tmp"],
        "user": "101:101",
        **_confined(),
    }


def _valkey(policy: Policy) -> dict[str, Any]:
    memory = policy.deploy.store_memory
    return {
        "image": Said(policy.deploy.store_image or VALKEY, "deploy.store_image"),
        "command": [
            *("valkey-server", "--save", "", "--appendonly", "no", "--dir", "/tmp"),
            *("--maxmemory", Said(str(int(memory * 0.75)), "0.75 × deploy.store_memory")),
            *("--maxmemory-policy", "volatile-ttl", "--protected-mode", "no"),
        ],
        "networks": ["stack"],
        "mem_limit": Said(memory, "deploy.store_memory"),
        "tmpfs": ["/tmp"],
        "user": f"{USER}:{USER}",
        **_confined(),
    }


def _pod(policy: Policy, number: int, address: str) -> dict[str, Any]:
    port, why = probe_port(policy)
    ask = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{port}{LIVE}', timeout=4)"
    return {
        "image": Said(policy.deploy.image, "deploy.image"),
        "build": ".",
        "environment": {
            "HEADWORKS_POD": f"pod-{number}",
            "HEADWORKS_STORE__URL": "valkey://valkey:6379",
            "HEADWORKS_DEPLOY__REPLICAS": str(PODS),
            "HEADWORKS_SERVICE__TRUST": f'["{NETWORK}"]',
        },
        "volumes": [f"./{FILE}:{FOLDER}/{FILE}:ro"],
        "networks": {"stack": {"ipv4_address": address}},
        "depends_on": ["valkey"],
        "healthcheck": {
            "test": Said(["CMD", "python", "-c", ask], why),
            "interval": Said("10s", "fixed: the gateway's own check is the fast one"),
            "timeout": Said("5s", "fixed: longer than any hold-up of the loop that passes"),
        },
        "mem_limit": Said(policy.deploy.memory, "deploy.memory"),
        "cpus": Said(1, "fixed: one process uses one core"),
        "stop_grace_period": Said(f"{math.ceil(policy.grace)}s", "deploy.grace"),
        "tmpfs": ["/tmp"],
        **_confined(),
    }
