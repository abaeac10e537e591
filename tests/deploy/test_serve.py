"""`headworks serve`, really run: one pod that starts, serves, and leaves with exit code 0."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.ports import free_port

pytestmark = pytest.mark.real

PATIENCE = 60.0
"""Seconds after which something has not happened."""

POLICY = """
schema = 1
[service]
name = "pod"
app = "{app}"
sla = "5s"
[fairness]
default_tier = "free"
tiers.free = {{ rate = "10/min" }}
"""

APP = """
import gc, os, resource
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from headworks import Headworks

def facts(request):
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = {"frozen": gc.get_freeze_count() > 0, "policy": os.environ["HEADWORKS_POLICY"]}
    return JSONResponse({**found, "files": files[0] == min(files[1], 65536)})

bare = Starlette(routes=[Route("/", facts)])
app = Headworks.load().protect(Starlette(routes=[Route("/", facts)]))
number = 7
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "pod_app.py").write_text(APP)
    (tmp_path / "headworks.toml").write_text(POLICY.format(app="pod_app:app"))
    return tmp_path


def command(place: Path, *options: str, managed: bool = False) -> list[str]:
    """`headworks serve`, without a management port unless it is `managed` by policy or option."""
    policy = str(place / "headworks.toml")
    return [
        sys.executable,
        "-m",
        "headworks",
        "serve",
        "--policy",
        policy,
        "--host",
        "127.0.0.1",
        *(() if managed else ("--management-port", "0")),
        *options,
    ]


@contextmanager
def pod(
    place: Path, *options: str, managed: bool = False
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A pod that answers, and its answer."""
    port = free_port()
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(
            command(place, "--port", str(port), *options, managed=managed),
            stderr=log,
            preexec_fn=_few_files,
        )
    try:
        yield process, _answer(port, place / "log")
    finally:
        process.kill()
        process.wait()


def _answer(port: int, log: Path) -> str:
    ends = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as reply:
                return str(reply.read().decode())
        except OSError:
            assert time.monotonic() < ends, log.read_text()
            time.sleep(0.05)


def _few_files() -> None:
    """What many a shell gives a process to begin with."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def ask(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as reply:
        return str(reply.read().decode())


def refused(place: Path, *options: str, managed: bool = False) -> str:
    """What the pod says when it cannot start; its exit code must be 2."""
    asked = command(place, *options, managed=managed)
    result = subprocess.run(asked, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def test_a_pod_serves_the_policys_app_frozen_and_ends_with_0_when_told(place: Path) -> None:
    with pod(place) as (process, answer):
        assert '"frozen":true' in answer
        assert '"files":true' in answer
        assert f'"policy":"{place}/headworks.toml"' in answer
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == 0


def test_freezing_can_be_declined(place: Path) -> None:
    with pod(place, "--no-gc-freeze") as (process, answer):
        assert '"frozen":false' in answer
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE) == 0


def test_the_policy_can_decline_it_and_the_option_decides(place: Path) -> None:
    policy = place / "headworks.toml"
    policy.write_text(policy.read_text() + '[deploy]\ngarbage_collection = "leave"\n')
    with pod(place) as (_, answer):
        assert '"frozen":false' in answer
    with pod(place, "--gc-freeze") as (_, answer):
        assert '"frozen":true' in answer


def test_probes_and_metrics_have_a_port_of_their_own(place: Path) -> None:
    """The option's, else the policy's; it has no other page, and is gone with the pod."""
    for_policy, for_option = free_port(), free_port()
    policy = place / "headworks.toml"
    policy.write_text(policy.read_text() + f"[management]\nport = {for_policy}\n")
    named = ("--host", "localhost", "--management-port", str(for_option))
    for port, options in (for_policy, ()), (for_option, named):
        with pod(place, *options, managed=True) as (process, _):
            assert '"reasons": []' in ask(port, "/ready")
            assert "headworks_ready 1.0" in ask(port, "/metrics")
            with pytest.raises(urllib.error.HTTPError, match="404"):
                ask(port, "/")
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=PATIENCE) == 0
            with pytest.raises(urllib.error.URLError, match="refused"):
                ask(port, "/ready")


def test_the_policy_says_on_which_address_probes_are_answered(place: Path) -> None:
    port = free_port("127.0.0.2")
    policy = place / "headworks.toml"
    policy.write_text(policy.read_text() + f'[management]\nhost = "127.0.0.2"\nport = {port}\n')
    with pod(place, managed=True):
        with urllib.request.urlopen(f"http://127.0.0.2:{port}/health", timeout=PATIENCE) as reply:
            assert reply.status == 200
        with pytest.raises(urllib.error.URLError, match="refused"):
            ask(port, "/health")


def test_one_port_is_not_for_both(place: Path) -> None:
    said = refused(place, "--port", "9000", managed=True)
    assert said == (
        "headworks: --management-port: 9000 is the service's port; choose another, or 0 for none\n"
    )


def test_a_management_port_in_use_is_one_clear_sentence(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = str(held.getsockname()[1])
        said = refused(place, "--management-port", port)
    assert said == (
        f"headworks: cannot listen on 127.0.0.1:{port} for probes and metrics: {os.strerror(98)}; "
        "choose another management.port (--management-port), or 0 for none\n"
    )


def test_several_workers_are_refused_with_the_reason(place: Path) -> None:
    assert "one pod is one process" in refused(place, "--workers", "2")


def test_a_policy_with_mistakes_is_refused_with_all_of_them(place: Path) -> None:
    text = POLICY.format(app="pod_app:app").replace('"5s"', '"never"').replace("10/min", "ten")
    (place / "headworks.toml").write_text(text)
    said = refused(place)
    assert "service.sla" in said
    assert "fairness.tiers.free.rate" in said


@pytest.mark.parametrize(
    ("app", "says"),
    [
        ("nowhere:app", "service.app: there is no module nowhere in"),
        ("pod_app:nothing", "service.app: module pod_app has no attribute nothing"),
        ("pod_app:number", "service.app: pod_app:number is no ASGI application but a value of type int"),
        (
            "pod_app:bare",
            "service.app: no Headworks protects pod_app:bare; call works.protect(bare) where it is made",
        ),
        ("broken_app:app", "importing broken_app failed: KeyError: 'BASE' (broken_app.py, line 2)"),
        (
            "needy_app:app",
            "importing needy_app failed: ModuleNotFoundError: No module named 'not_there'",
        ),
    ],
)
def test_an_app_that_cannot_be_had_is_one_clear_sentence(place: Path, app: str, says: str) -> None:
    (place / "headworks.toml").write_text(POLICY.format(app=app))
    (place / "broken_app.py").write_text("import os\nos.environ['BASE']\n")
    (place / "needy_app.py").write_text("import not_there\n")
    said = refused(place)
    assert says in said
    assert said.count("\n") == 1


def test_a_port_in_use_is_one_clear_sentence(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = str(held.getsockname()[1])
        said = refused(place, "--port", port)
    assert said == (
        f"headworks: cannot listen on 127.0.0.1:{port}: {os.strerror(98)}; choose another --port\n"
    )


def test_a_folder_that_is_looked_in_twice_is_named_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "headworks.toml").write_text(POLICY.format(app="nowhere:app"))
    monkeypatch.chdir(place)
    assert refused(place) == f"headworks: service.app: there is no module nowhere in {place}\n"
