"""What reads the pods' metrics: a PodMonitor, and the rules by which an adapter serves the autoscaler.

These are for clusters that have the Prometheus operator and its adapter, and so lie apart from the rest.
"""

from __future__ import annotations

from typing import Any

from headworks.deploy.pod import METRICS, labels, meta, ports
from headworks.manifest import Manifest, Said, yaml
from headworks.policy.settings import Policy

IN_FLIGHT = "headworks_in_flight"
"""Requests in a pod, as it exports them."""
SHED_RATE = "headworks_shed_per_second"
"""Requests a pod's admission refuses per second, as the adapter derives them."""


def manifests(policy: Policy) -> list[Manifest]:
    """The PodMonitor, and a ConfigMap with the adapter's rules."""
    endpoint = {
        "port": ports(policy)[-1]["name"],
        "path": METRICS,
        "interval": Said("15s", "fixed: as often as it scales"),
    }
    return [
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PodMonitor",
            "metadata": meta(policy),
            "spec": {
                "selector": {"matchLabels": labels(policy)},
                "podMetricsEndpoints": [endpoint],
            },
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": meta(policy, suffix="-adapter-rules"),
            "data": {"rules.yaml": yaml([{"rules": _rules()}], "For prometheus-adapter: rules.custom")},
        },
    ]


def _rules() -> list[dict[str, Any]]:
    shed = 'headworks_decisions_total{layer="admission",outcome="refused"}'
    return [
        _rule(IN_FLIGHT, IN_FLIGHT, "max(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)"),
        _rule(shed, SHED_RATE, "sum(rate(<<.Series>>{<<.LabelMatchers>>}[1m])) by (<<.GroupBy>>)"),
    ]


def _rule(series: str, name: str, query: str) -> dict[str, Any]:
    return {
        "seriesQuery": series,
        "resources": {"overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}},
        "name": {"as": name},
        "metricsQuery": query,
    }
