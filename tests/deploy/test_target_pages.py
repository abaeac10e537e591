"""A page per target: its commands run, and it explains every policy field that the files name."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from tests.deploy.test_offline_validation import FIELD, FULL, PODS, SOURCE
from tests.policies import SHIPPED, shipped
from typer.testing import CliRunner

from headworks.cli.app import app
from headworks.deploy import compose, kubernetes, monitoring
from headworks.gateway import envoy, gateway_api, ingress_nginx, nginx
from headworks.manifest import yaml
from headworks.policy.settings import Policy
from headworks.telemetry.prometheus import PrometheusSink

TARGETS = Path(__file__).parents[2] / "docs" / "targets"
PAGES = sorted(TARGETS.glob("*.md"))
COMMAND = re.compile(r"^    (headworks (?:render|check) .*)$", re.MULTILINE)


def texts(page: str, policy: Policy) -> list[str]:
    """What the target of that page renders."""
    match page:
        case "nginx":
            return list(nginx.render(policy, pods=PODS, port=8080).values())
        case "envoy":
            return list(envoy.render(policy, pods=PODS, port=8080).values())
        case "gateway-api":
            return [yaml(gateway_api.render(policy), "")]
        case "ingress-nginx":
            return [yaml(ingress_nginx.render(policy), "")]
        case "kubernetes":
            return [text for name, text in kubernetes.render(policy, SOURCE).items() if "base/" in name]
        case _:
            return list(compose.render(policy, {}).values())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(SHIPPED, tmp_path / "headworks.toml")
    monkeypatch.chdir(tmp_path)
    commands = COMMAND.findall(page.read_text(encoding="utf-8"))
    assert commands
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, f"{command}: {result.output}"
    for named in re.findall(r"(?:-f|-k|--patch-file) (\S+/\S+)", page.read_text(encoding="utf-8")):
        assert (tmp_path / named.rstrip("`).")).exists(), f"{named} is not among the rendered files"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@pytest.mark.parametrize("changes", [{}, FULL, {"gateway": {"mode": "shadow"}}])
def test_a_page_explains_every_field_that_its_files_name(page: Path, changes: dict[str, object]) -> None:
    said = page.read_text(encoding="utf-8")
    comments = [
        line.partition("# ")[2]
        for text in texts(page.stem, shipped(**changes))  # type: ignore[arg-type]
        for line in text.splitlines()
        if "# " in line and not line.startswith("    #") and SOURCE.find(line.strip()) < 0
    ]
    named = {field.rstrip(".") for comment in comments for field in FIELD.findall(comment)}
    named = {re.sub(r"vendors\.\w+", "vendors.NAME", field) for field in named}
    assert [field for field in sorted(named) if f"`{field}`" not in said] == []


def test_alerts_and_scaling_ask_for_metrics_that_pods_export() -> None:
    source = Path(__file__).parents[2] / "src" / "headworks"
    counted = re.findall(r"headworks_\w+", PrometheusSink.__doc__ or "")
    gauges = [
        f"headworks_{name}"
        for file in source.rglob("*.py")
        for name in re.findall(r"gauge\(\s*\"(\w+)\"", file.read_text(encoding="utf-8"))
    ]
    derived = [monitoring.SHED_RATE]
    asked = "".join(
        [
            (TARGETS.parent / "operations.md").read_text(encoding="utf-8"),
            yaml(monitoring.manifests(shipped()), ""),
        ]
    )
    wanted = set(re.findall(r"headworks_\w+", asked))
    assert len(wanted) > 7
    assert wanted - {*counted, *gauges, *derived} == set()
