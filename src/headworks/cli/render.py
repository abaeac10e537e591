"""`headworks render TARGET`: configuration for what stands around the pods, from the policy."""

from __future__ import annotations

import difflib
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from headworks.cli.fail import complain, fail, policy_or_fail
from headworks.deploy import compose, image, kubernetes
from headworks.gateway import envoy, gateway_api, ingress_nginx, nginx
from headworks.gateway.shares import Address
from headworks.manifest import Manifest, files, yaml
from headworks.policy.load import MAX_FILE
from headworks.policy.settings import Policy

CHANGED = 1


class Target(StrEnum):
    """What can be rendered."""

    NGINX = "nginx"
    ENVOY = "envoy"
    GATEWAY_API = "gateway-api"
    INGRESS_NGINX = "ingress-nginx"
    KUBERNETES = "kubernetes"
    COMPOSE = "compose"
    DOCKERFILE = "dockerfile"


def render(
    target: Annotated[Target, typer.Argument(help="What to render.")],
    policy: Annotated[Path, typer.Option("--policy", help="The policy file.")] = Path("headworks.toml"),
    pod: Annotated[
        list[str] | None,
        typer.Option(
            "--pod",
            help="nginx, envoy: HOST:PORT of a pod; repeat it. Default: 127.0.0.1 and deploy.port.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the files; default: standard output.")
    ] = None,
    diff: Annotated[
        Path | None,
        typer.Option("--diff", help="Write nothing; show how the files of this folder would change."),
    ] = None,
) -> None:
    """Render configuration from the policy.

    With --diff, exit code 0 when nothing would change and 1 when something would.

    Example: headworks render kubernetes --policy headworks.toml --out deploy/
    """
    settings = policy_or_fail(policy)
    pods = [_address(text) for text in pod or [f"127.0.0.1:{settings.deploy.port}"]]
    if target in (Target.KUBERNETES, Target.COMPOSE):
        _no_overrides(target)
    rendered = _files(target, settings, policy, pods)
    if target is Target.INGRESS_NGINX:
        complain(f"warning: {ingress_nginx.WARNING}")
    if diff is not None:
        raise typer.Exit(CHANGED if _show_changes(rendered, diff) else 0)
    if out is not None:
        _write(rendered, out)
    else:
        _print(target, rendered)


def _files(target: Target, policy: Policy, file: Path, pods: list[Address]) -> dict[str, str]:
    port = policy.deploy.gateway_port
    match target:
        case Target.NGINX:
            return nginx.render(policy, pods=pods, port=port, host="0.0.0.0")
        case Target.ENVOY:
            return envoy.render(policy, pods=pods, port=port, host="0.0.0.0")
        case Target.GATEWAY_API:
            objects = gateway_api.render(policy)
            return _manifests(objects, gateway_api.HEAD)
        case Target.INGRESS_NGINX:
            return _manifests(ingress_nginx.render(policy), ingress_nginx.HEAD)
        case Target.KUBERNETES:
            return kubernetes.render(policy, _text(file))
        case Target.COMPOSE:
            there = [Address(host, policy.deploy.port) for host in compose.pod_addresses()]
            edge = envoy.render(policy, pods=there, port=port, host="0.0.0.0")
            return compose.render(policy, edge)
        case Target.DOCKERFILE:
            return image.render(policy)


def _manifests(objects: list[Manifest], head: str) -> dict[str, str]:
    """All objects in one file to apply, and in one each to build on."""
    single = files(objects, head)
    return {
        kubernetes.ALL: yaml(objects, head),
        **{f"base/{name}": text for name, text in single.items()},
    }


def _text(file: Path) -> str:
    """The policy as the pods will read it."""
    try:
        return file.read_bytes()[:MAX_FILE].decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror}")


def _no_overrides(target: Target) -> None:
    """What is rendered for pods must come from the file that they will read."""
    found = [n for n in sorted(os.environ) if n.upper().startswith("HEADWORKS_") and "__" in n[10:]]
    if found:
        fail(
            f"the pods would not have {', '.join(found)}, which override the policy here; "
            f"write them into the policy, or unset them to render {target}"
        )


def _print(target: Target, rendered: dict[str, str]) -> None:
    """Manifests as they can be piped on; of everything else each file below its name."""
    if kubernetes.ALL in rendered:
        rendered = {kubernetes.ALL: rendered[kubernetes.ALL]}
    for name, text in rendered.items():
        typer.echo(f"# ---- {name}\n{text}" if len(rendered) > 1 else text, nl=False)


def _write(rendered: dict[str, str], out: Path) -> None:
    try:
        for name, text in rendered.items():
            file = out / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            typer.echo(file)
    except OSError as error:
        fail(f"cannot write to {out}: {error.strerror}")


def _show_changes(rendered: dict[str, str], folder: Path) -> bool:
    """Print how the folder's files differ from what would be rendered; whether they do at all."""
    changed = False
    for name, text in rendered.items():
        try:
            old = (folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            old = ""
        except OSError as error:
            fail(f"cannot read {folder / name}: {error.strerror}")
        lines = difflib.unified_diff(
            old.splitlines(), text.splitlines(), str(folder / name), f"rendered {name}", lineterm=""
        )
        for line in lines:
            changed = True
            typer.echo(line)
    return changed


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        fail(f"--pod {text}: write HOST:PORT, such as 10.0.0.7:8000")
    return Address(host.strip("[]"), int(port))
