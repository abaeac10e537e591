"""Whatever is valid as a policy renders into files that their own validators take: strictly, offline."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from tests import crds
from tests.crds import needs_crds
from tests.policies import SHIPPED, policies, shipped

from headworks.deploy import compose, image, kubernetes
from headworks.gateway import envoy, gateway_api, ingress_nginx, nginx
from headworks.gateway.shares import Address
from headworks.local.gateways import envoy_binary, nginx_binary
from headworks.manifest import Manifest, plain
from headworks.policy.settings import Policy

KUBERNETES = "1.37"
SOURCE = SHIPPED.read_text(encoding="utf-8")
PODS = [Address("10.0.0.1", 8000), Address("2001:db8::2", 8000)]
few = settings(
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
very_few = settings(few, max_examples=12)
FULL = {
    "gateway": {
        "replicas": 3,
        "host": "api.example.org",
        "tls_secret": "tls",
        "trust": ["10.0.0.0/8", "2001:db8::/32"],
    },
    "deploy": {"max_replicas": 20},
    "store": {"url": {"file": "/run/secrets/store/url"}},
}
"""Everything switched on that can be."""


def core(policy: Policy) -> list[Manifest]:
    """The objects whose schemas every cluster knows."""
    return [*kubernetes.manifests(policy, SOURCE), *ingress_nginx.render(policy)]


def refused(manifest: Manifest) -> str:
    try:
        kubernetes_validate.validate(plain(manifest), KUBERNETES, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return f"{manifest['kind']}: {error}"
    return ""


@pytest.mark.parametrize("changes", [{}, FULL], ids=["shipped", "everything"])
def test_core_objects_are_what_kubernetes_takes(changes: dict[str, Any]) -> None:
    manifests = core(shipped(**changes))
    assert [mistake for mistake in map(refused, manifests) if mistake] == []
    kinds = {str(found["kind"]) for found in manifests}
    assert {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "Ingress"} <= kinds
    assert ("HorizontalPodAutoscaler" in kinds) == (changes is FULL)


@few
@given(policies)
def test_core_objects_of_any_policy_are_what_kubernetes_takes(policy: Policy) -> None:
    assert [mistake for mistake in map(refused, core(policy)) if mistake] == []


def test_the_strict_schemas_notice_a_field_that_does_not_exist() -> None:
    deployment = next(f for f in core(shipped()) if f["kind"] == "Deployment")
    deployment["spec"]["minReadySecond"] = 5
    assert "minReadySecond" in refused(deployment)


@needs_crds
@pytest.mark.parametrize("changes", [{}, FULL], ids=["shipped", "everything"])
def test_gateway_objects_keep_their_schemas_and_rules(changes: dict[str, Any]) -> None:
    policy = shipped(**changes)
    for manifest in gateway_api.render(policy):
        assert crds.mistakes(plain(manifest)) == [], manifest["kind"]


@needs_crds
@few
@given(policies)
def test_gateway_objects_of_any_policy_keep_their_schemas_and_rules(policy: Policy) -> None:
    for manifest in gateway_api.render(policy):
        assert crds.mistakes(plain(manifest)) == [], manifest["kind"]


@needs_crds
@pytest.mark.parametrize(
    ("kind", "path", "value", "says"),
    [
        ("BackendTrafficPolicy", "spec.rateLimit.locale", {}, "'locale' was unexpected"),
        ("BackendTrafficPolicy", "spec.rateLimit.type", "Locl", "'Locl' is not one of"),
        ("BackendTrafficPolicy", "spec.targetRefs", None, "either targetRef or targetRefs"),
        ("BackendTrafficPolicy", "spec.healthCheck.active.type", "TCP", "tcp"),
        ("SecurityPolicy", "spec.authorization.rules.0.principal", None, "at least one of principal"),
    ],
)
def test_the_schemas_and_rules_notice_what_is_wrong(
    kind: str, path: str, value: object, says: str
) -> None:
    manifests = gateway_api.render(shipped())
    manifest: Any = plain(next(found for found in manifests if found["kind"] == kind))
    *way, last = path.split(".")
    here = manifest
    for part in way:
        here = here[int(part) if part.isdecimal() else part]
    if value is None:
        del here[last]
    else:
        here[last] = value
    assert says.lower() in " ".join(crds.mistakes(manifest)).lower()


@needs_crds
def test_every_rule_of_the_schemas_can_be_asked() -> None:
    """A rule that does not compile would let everything through."""
    rules = crds.rules()
    assert len(rules) > 150
    for rule in rules:
        crds.compiled(rule)


def accepts_nginx(policy: Policy, folder: Path) -> str:
    for name, text in nginx.render(policy, pods=PODS, port=8080).items():
        (folder / name).write_text(text, encoding="utf-8")
    # The number of open files is the machine's business, and `-t` asks for it.
    conf = folder / "nginx.conf"
    conf.write_text(re.sub(r"(worker_connections|worker_rlimit_nofile) \d+", r"\1 64", conf.read_text()))
    command = [str(nginx_binary()), "-t", "-p", f"{folder}/", "-c", "nginx.conf", "-e", "stderr"]
    return failure(command)


def accepts_envoy(files: dict[str, str], folder: Path) -> str:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    command = [str(envoy_binary()), "--mode", "validate", "-c", str(folder / "bootstrap.yaml")]
    return failure([*command, "--log-level", "error"])


def failure(command: list[str]) -> str:
    """What a command said before it failed; nothing when it did not."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return "" if result.returncode == 0 else result.stdout + result.stderr or "failed"


@pytest.mark.real
@pytest.mark.parametrize("changes", [{}, FULL], ids=["shipped", "everything"])
def test_the_edges_take_their_files(changes: dict[str, Any], tmp_path: Path) -> None:
    policy = shipped(**changes)
    assert accepts_nginx(policy, tmp_path) == ""
    files = envoy.render(policy, pods=PODS, port=8080, folder=str(tmp_path))
    assert accepts_envoy(files, tmp_path) == ""


@pytest.mark.real
@very_few
@given(policies)
def test_the_edges_take_the_files_of_any_policy(tmp_path: Path, policy: Policy) -> None:
    assert accepts_nginx(policy, tmp_path) == ""
    files = envoy.render(policy, pods=PODS, port=8080, folder=str(tmp_path))
    assert accepts_envoy(files, tmp_path) == ""


@pytest.mark.real
def test_the_edges_notice_what_is_wrong(tmp_path: Path) -> None:
    files = envoy.render(shipped(), pods=PODS, port=8080, folder=str(tmp_path))
    files["bootstrap.yaml"] = files["bootstrap.yaml"].replace("max_tokens", "max_token", 1)
    assert "max_token" in accepts_envoy(files, tmp_path)


@pytest.mark.real
def test_ingress_snippets_run_in_the_nginx_they_are_for(tmp_path: Path) -> None:
    """As the controller composes them: the one in `http`, the other in every location."""
    data: Any = plain(ingress_nginx.render(shipped(gateway={"replicas": 2}))[0])["data"]
    assert "rate=1000r/s" in data["http-snippet"]
    assert "burst=199 nodelay" in data["location-snippet"], "a fifth of 2000/s, for each of two"
    conf = (
        "events {} http { access_log off; client_body_temp_path b; proxy_temp_path p; "
        f"{data['http-snippet']} server {{ listen 127.0.0.1:1; "
        f"location / {{ {data['location-snippet']} return 200; }} }} }}"
    )
    (tmp_path / "nginx.conf").write_text(conf)
    command = [str(nginx_binary()), "-t", "-p", f"{tmp_path}/", "-c", "nginx.conf", "-e", "stderr"]
    assert failure(command) == ""


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl on this machine")
@pytest.mark.parametrize("changes", [{}, FULL], ids=["shipped", "everything"])
def test_the_overlay_builds_and_holds_every_object(changes: dict[str, Any], tmp_path: Path) -> None:
    policy = shipped(**changes)
    for name, text in kubernetes.render(policy, SOURCE).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = ["kubectl", "kustomize", str(tmp_path / "overlays/production")]
    built = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    found = {(f["kind"], f["metadata"]["name"]) for f in yaml.safe_load_all(built)}
    expected = {(f["kind"], plain(f["metadata"]["name"])) for f in kubernetes.manifests(policy, SOURCE)}
    assert expected < found
    assert ("PodMonitor", "fastapi-app") in found


COMMENT = re.compile(r"#\s*(?P<said>.*)$")
FIELD = re.compile(
    r"\b(?:service|gateway|health|management|admission|store|deploy|vendors|fairness)\.[a-z_.]+"
)


def unexplained(text: str) -> Iterator[str]:
    """Lines of YAML with a number and without a word about where it comes from."""
    block = None
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if block is not None and (indent > block or not line.strip()):
            continue
        block = indent if re.search(r":( \|)$", line) else None
        value, _, said = line.partition("  # ")
        bare = re.sub(r"^\s*(?:- )*[^:]*:(?= |$)", "", value) if ":" in value else value
        if not re.fullmatch(r"\s*-?\s*\"?\d[\w.]*\"?", bare) or said.startswith("fixed: "):
            continue
        if not FIELD.search(said):
            yield line


def known(field: str) -> bool:
    """Whether the policy has such a setting."""
    here: Any = shipped()
    for part in field.split("."):
        if isinstance(here, dict):
            here = next((here[name] for name in here if name == part), None)
        elif not hasattr(here, part):
            return False
        else:
            here = getattr(here, part)
    return True


def every_yaml(policy: Policy) -> Iterator[tuple[str, str]]:
    """Every file of every target, by name."""
    edge = envoy.render(policy, pods=PODS, port=8080)
    yield from edge.items()
    yield from compose.render(policy, {}).items()
    yield from kubernetes.render(policy, SOURCE).items()
    for module in (gateway_api.render(policy), ingress_nginx.render(policy)):
        for manifest in module:
            yield str(manifest["kind"]), kubernetes.yaml([manifest], "")


@pytest.mark.parametrize("changes", [{}, FULL], ids=["shipped", "everything"])
def test_every_number_says_which_policy_field_it_comes_from(changes: dict[str, Any]) -> None:
    policy = shipped(**changes)
    for name, text in every_yaml(policy):
        # Statuses and ports of addresses are no settings of ours.
        lines = [
            line
            for line in unexplained(text)
            if not re.search(
                r"status|code:|port_value|default_value|retry_after|prefix_mask_len|"
                r"address(_prefix)?: |ipv4_address|value: [45]\d\d$|kubernetes.io|REPLICAS",
                line,
            )
        ]
        assert lines == [], name


def test_what_comments_name_is_in_the_policy() -> None:
    texts = [text for _, text in every_yaml(shipped(**FULL))]
    texts += nginx.render(shipped(**FULL), pods=PODS, port=8080).values()
    texts += image.render(shipped()).values()
    fields = {
        field.rstrip(".")
        for text in texts
        for line in text.splitlines()
        if "  # " in line
        for field in FIELD.findall(line.partition("  # ")[2])
    }
    assert len(fields) > 30
    assert [field for field in sorted(fields) if not known(field)] == []
