"""`headworks check FILE`: is the policy valid, and do its numbers fit together?"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headworks.errors import PolicyError
from headworks.policy.fields import ROLLING
from headworks.policy.laws import Finding
from headworks.policy.laws import check as sizing_laws
from headworks.policy.load import load
from headworks.policy.profiles import Profile, profile_named
from headworks.policy.settings import Policy, VendorSettings
from headworks.vendor.quota import DAY, Quota

SOUND, BROKEN, UNUSABLE = 0, 1, 2

NOON = datetime(2000, 1, 1, 12, tzinfo=UTC)
"""Some moment; how a contract is kept is the same at all."""

_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


@dataclass(frozen=True, slots=True)
class Contract:
    """How one quota of a vendor will be kept.

    pace         units per second when demand is steady
    burst        units that may be sent at once
    utilisation  the part of our share that can be used without ever exceeding it, jitter considered
    """

    vendor: str
    quota: str
    mechanism: str
    evidence: str
    pace: float
    burst: int
    utilisation: float


def check(
    policy: Annotated[Path, typer.Argument(metavar="FILE", help="The policy file.")] = Path(
        "headworks.toml"
    ),
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Validate a policy and apply the sizing laws.

    Exit code 0: sound (there may be notes). 1: a law is broken. 2: the file cannot be read or is
    invalid. HEADWORKS_SECTION__FIELD variables override the file, as they do when it is used.

    Example: headworks check headworks.toml
    """
    try:
        checked = load(policy)
    except PolicyError as error:
        _print_problems(error, as_json=json)
        raise typer.Exit(UNUSABLE) from None
    findings = sizing_laws(checked)
    contracts = list(contracts_of(checked))
    broken = any(finding.severity != "note" for finding in findings)
    if json:
        _print_json(
            {
                "file": str(policy),
                "sound": not broken,
                "findings": [asdict(finding) for finding in findings],
                "vendors": [asdict(contract) for contract in contracts],
            }
        )
    else:
        _print_result(policy, findings, contracts, broken=broken)
    raise typer.Exit(BROKEN if broken else SOUND)


def contracts_of(policy: Policy) -> Iterator[Contract]:
    """Every quota of every vendor, its models' own included, as the vendor layer will keep it."""
    for name, vendor in policy.vendors.items():
        profile = profile_named(vendor.profile)
        for model in ("", *vendor.models):
            quota = Quota(name, vendor, profile, model, now=lambda: NOON)
            asks = quota.asks(dict.fromkeys(quota.units, 1))
            label = f"{name}:{model}" if model else name
            for rate in vendor.models[model].quota if model else vendor.quota:
                shapes = [ask.shape for ask in asks if ask.name == f"{label}:{rate}"]
                slowest = min(shapes, key=lambda shape: shape.limit / shape.period_us)
                calendar = rate.period == DAY and (vendor.day or profile.day) != ROLLING
                pace = slowest.limit / (DAY if calendar else slowest.period)
                yield Contract(
                    vendor=label,
                    quota=str(rate),
                    mechanism="calendar day" if calendar else profile.mechanism,
                    evidence=_evidence(vendor, profile, "day" if calendar else "mechanism"),
                    pace=pace,
                    burst=slowest.most,
                    utilisation=pace / (rate.per_second * vendor.share),
                )


def _evidence(vendor: VendorSettings, profile: Profile, fact: str) -> str:
    """How surely a fact is known, or that the policy says so."""
    return "policy" if fact == "day" and vendor.day else profile.evidence[fact].known


def _print_problems(error: PolicyError, *, as_json: bool) -> None:
    if as_json:
        problems = [asdict(problem) for problem in error.problems]
        _print_json({"file": error.source, "sound": False, "problems": problems})
        return
    console = _console(stderr=True)
    for problem in error.problems:
        label = "invalid " if problem.path else ""
        console.print(Text.assemble((f"{error.source}: ", "dim"), (label, "red"), str(problem)))


def _print_result(
    file: Path, findings: list[Finding], contracts: list[Contract], *, broken: bool
) -> None:
    console = _console()
    for finding in findings:
        severity = (f"{finding.severity} ", _COLOURS[finding.severity])
        what = f"{finding.path}: {finding.message}"
        console.print(Text.assemble((f"{file}: ", "dim"), severity, what))
        label = "" if finding.severity == "note" else "remedy: "
        console.print(Text.assemble("    ", (label, "green"), finding.remedy))
    if contracts:
        console.print(_table(contracts))
    counted = {severity: sum(f.severity == severity for f in findings) for severity in _COLOURS}
    summary = ", ".join(
        f"{count} {severity}{'s' if count > 1 else ''}" for severity, count in counted.items() if count
    )
    verdict = "does not fit together" if broken else "is sound"
    console.print(f"{file} {verdict}" + (f": {summary}" if summary else ""), markup=False)


def _table(contracts: list[Contract]) -> Table:
    """What `check` prints about the vendors."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("vendor", "quota", "mechanism", "pace", "burst", "best use of it"):
        table.add_column(heading, justify="right" if heading in ("pace", "burst") else "left")
    for contract in contracts:
        table.add_row(
            contract.vendor,
            contract.quota,
            f"{contract.mechanism} ({contract.evidence})",
            f"{contract.pace:.3f}".rstrip("0").rstrip(".") + "/s",
            str(contract.burst),
            f"{contract.utilisation:.2%}",
        )
    return table


def _console(*, stderr: bool = False) -> Console:
    """Colours and folding for a terminal; one line per finding for everything else."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, highlight=False, soft_wrap=True, width=None if terminal else 200)


def _print_json(data: dict[str, Any]) -> None:
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
