"""A policy that changes while the service runs: real files and links, in virtual time."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from headworks import Headworks
from headworks.policy.load import parse
from headworks.store.protocol import Question
from headworks.telemetry import Changed
from headworks.testing.recording import RecordingSink
from headworks.verdict import Verdict
from headworks.works.reload import differences

POLICY = """
schema = 1
[service]
name = "svc"
reload = "5s"
[fairness]
default_tier = "free"
[fairness.tiers]
free = { rate = "4/min" }
[fairness.keys]
"secret-key-number-one" = "free"
"""


class Running:
    """A protected service whose policy is in a file."""

    def __init__(self, file: Path) -> None:
        self.works = Headworks.load(file, environ={})
        self.sink = RecordingSink()
        self.works.telemetry.add(self.sink)

        async def hello(request: Any) -> PlainTextResponse:
            await asyncio.sleep(float(request.query_params.get("for", "0")))
            await self.works.charge(int(request.query_params.get("more", "0")))
            return PlainTextResponse("hello")

        self.app = self.works.protect(FastAPI(routes=[Route("/hello", hello), Route("/other", hello)]))

    @asynccontextmanager
    async def client(self, key: str = "") -> AsyncIterator[httpx2.AsyncClient]:
        transport = httpx2.ASGITransport(app=self.app, client=("203.0.113.7", 1))
        headers = {"X-API-Key": key} if key else {}
        async with httpx2.AsyncClient(transport=transport, base_url="http://s", headers=headers) as c:
            yield c

    async def left(self, path: str = "/hello", key: str = "") -> str:
        async with self.client(key) as client:
            return str((await client.get(path)).headers["ratelimit"])

    def changes(self) -> list[tuple[str, str]]:
        return [(e.state, e.detail) for e in self.sink.of(Changed) if e.subject == "policy"]


@asynccontextmanager
async def running(file: Path) -> AsyncIterator[Running]:
    made = Running(file)
    async with made.app.router.lifespan_context(made.app):
        yield made


def written(file: Path, text: str = POLICY) -> Path:
    """Put a file in place at once, as an editor or a deployment should."""
    beside = file.with_suffix(".new")
    beside.write_text(text)
    beside.replace(file)
    return file


async def test_a_changed_file_holds_within_two_looks_and_counts_stay(tmp_path: Path) -> None:
    """Of four, three are taken; of ten, seven are left then. One event says what has changed."""
    file = written(tmp_path / "headworks.toml")
    async with running(file) as made:
        for _ in range(3):
            await made.left()
        written(file, POLICY.replace("4/min", "10/min"))
        assert (await made.left()).startswith('"tier:free";r=0;')
        await asyncio.sleep(11)
        assert (await made.left()).startswith('"tier:free";r=5;')
        assert made.changes() == [("reloaded", "fairness.tiers.free.rate")]
        assert made.works.policy.fairness.tiers["free"].rate.amount == 10
        written(file, POLICY.replace("4/min", "2/min"))
        await asyncio.sleep(11)
        async with made.client() as client:
            assert (await client.get("/hello")).status_code == 429, "five of two are gone"
        text = made.works._metrics.render()[1].decode()
        assert 'headworks_changes_total{state="reloaded",subject="policy"} 2.0' in text


async def test_everything_of_fairness_may_change(tmp_path: Path) -> None:
    """Tiers, keys, endpoints, exemptions, modes, dialect, trust: by the very next request."""
    file = written(tmp_path / "headworks.toml")
    async with running(file) as made:
        assert "tier:free" in await made.left(key="secret-key-number-two")
        async with made.client() as client:
            assert (await client.get("/metrics")).status_code == 404, "metrics are for those inside"
        written(
            file,
            """
            schema = 1
            service = { name = "svc", reload = "5s", trust = ["203.0.113.7"] }
            [fairness]
            default_tier = "guest"
            headers = "draft-11"
            exempt = ["/other"]
            endpoints = { "/hello" = "20/min" }
            tiers = { guest = { rate = "1/min" }, gold = { rate = "30/min" } }
            keys = { "secret-key-number-two" = "gold" }
            """,
        )
        await asyncio.sleep(11)
        assert await made.left(key="secret-key-number-two") == (
            '"tier:gold";r=29;t=60, "endpoint:/hello";r=19;t=60'
        )
        async with made.client() as client:
            for n in range(3):
                answer = await client.get("/hello", headers={"X-Forwarded-For": f"198.51.100.{n}"})
                assert answer.status_code == 200
            assert "ratelimit" not in (await client.get("/other")).headers
            assert (await client.get("/metrics")).status_code == 200
        ((_, detail),) = made.changes()
        assert "fairness.keys" in detail
        assert "secret" not in detail


async def test_a_config_map_is_followed_through_its_links(tmp_path: Path) -> None:
    """Kubernetes keeps the file behind "..data", a link that it exchanges as a whole."""

    def version(name: str, text: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "headworks.toml").write_text(text)
        os.utime(folder / "headworks.toml", (1, 1))  # neither time nor size tells them apart
        (tmp_path / "..data_tmp").symlink_to(name)
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")

    version("..2026_01_01", POLICY)
    file = tmp_path / "headworks.toml"
    file.symlink_to("..data/headworks.toml")
    async with running(file) as made:
        assert (await made.left()).startswith('"tier:free";r=3;')
        version("..2026_01_02", POLICY.replace("4/min", "9/min"))
        (tmp_path / "..2026_01_01" / "headworks.toml").unlink()
        await asyncio.sleep(11)
        assert (await made.left()).startswith('"tier:free";r=7;')


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("schema = 1\n[fairness", "not TOML"),
        (POLICY.replace("4/min", "4 a minute"), "fairness.tiers.free.rate"),
        (POLICY.replace('= "free"', '= "gold"'), "there is no tier 'gold'"),
        ("", "is missing"),
        (POLICY.replace("4/min", "1/31d burst 1000000000"), "burst"),
    ],
)
async def test_a_bad_file_is_refused_aloud_once_and_the_old_policy_stands(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, says: str
) -> None:
    """The log says every mistake, the metric counts it, and a file put right is taken up again."""
    file = written(tmp_path / "headworks.toml")
    async with running(file) as made:
        written(file, text)
        await asyncio.sleep(60)
        assert (await made.left()).startswith('"tier:free";r=3;')
        assert [state for state, _ in made.changes()] == ["refused"]
        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == 1
        assert says in errors[0].getMessage()
        assert "secret-key-number-one" not in caplog.text
        written(file, POLICY.replace("4/min", "5/min"))
        await asyncio.sleep(11)
        assert (await made.left()).startswith('"tier:free";r=3;')
        assert [state for state, _ in made.changes()] == ["refused", "reloaded"]


async def test_a_file_that_is_gone_changes_nothing(tmp_path: Path) -> None:
    """Nor does its return as it was."""
    file = written(tmp_path / "headworks.toml")
    async with running(file) as made:
        file.rename(tmp_path / "away")
        await asyncio.sleep(30)
        assert (await made.left()).startswith('"tier:free";r=3;')
        (tmp_path / "away").rename(file)
        await asyncio.sleep(30)
        assert [state for state, _ in made.changes()] == ["refused"]


async def test_a_file_that_is_still_being_written_is_left_alone(tmp_path: Path) -> None:
    """Its first half may well be a policy, but not the one that is meant."""
    text = POLICY + '[fairness.endpoints]\n"/hello" = "1/min"\n"/other" = "1/min"\n'
    file = written(tmp_path / "headworks.toml")
    async with running(file) as made:
        await asyncio.sleep(1)
        file.write_text("")
        for end in range(0, len(text), len(text) // 10):  # a part every three seconds
            file.write_text(text[: end + 1])
            await asyncio.sleep(3)
            assert made.changes() == []
        file.write_text(text)
        await asyncio.sleep(11)
        assert made.changes() == [
            ("reloaded", 'fairness.endpoints."/hello", fairness.endpoints."/other"')
        ]


async def test_a_file_that_changes_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "headworks.toml")
    async with running(file) as made:
        watch = made.works._policy_watch
        assert watch is not None
        read = watch._read

        def changing() -> Any:
            policy = read()
            written(file, POLICY.replace("4/min", "6/min"))
            monkeypatch.undo()
            return policy

        monkeypatch.setattr(watch, "_read", changing)
        written(file, POLICY.replace("4/min", "5/min"))
        await asyncio.sleep(30)
        assert (await made.left()).startswith('"tier:free";r=5;')
        assert len(made.changes()) == 1


async def test_what_needs_a_restart_is_named_and_the_rest_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the port nor the store moves while requests are served, and secrets are not told."""
    file = written(tmp_path / "headworks.toml")
    async with running(file) as made:
        written(
            file,
            POLICY.replace("4/min", "5/min").replace('reload = "5s"', 'sla = "30s"')
            + '[deploy]\nport = 9000\n[store]\nurl = "valkey://elsewhere:6379"\n',
        )
        await asyncio.sleep(11)
        assert made.changes() == [
            ("reloaded", "fairness.tiers.free.rate"),
            ("needs-restart", "service.sla, service.reload, store, deploy.port"),
        ]
        assert "needs a restart" in caplog.text
        assert "elsewhere" not in caplog.text
        policy = made.works.policy
        assert (policy.deploy.port, policy.service.sla, policy.store) == (8000, 60.0, None)


async def test_a_request_goes_by_one_policy_from_its_limits_to_its_headers(tmp_path: Path) -> None:
    """One that waits in the store, and one that is charged later, while the policy changes; the new
    one has neither the tier nor the dialect that they began with."""
    file = written(tmp_path / "headworks.toml")
    async with running(file) as made:
        store = made.works._store
        ask = store.ask

        async def slow(question: Question) -> Verdict:
            await asyncio.sleep(20)
            return await ask(question)

        made.works._fairness._store.ask = slow  # type: ignore[method-assign]  # that is the test
        async with made.client("secret-key-number-one") as client:
            waiting = asyncio.create_task(client.get("/hello?for=1&more=2"))
            await asyncio.sleep(1)
            renamed = POLICY.replace("free", "other").replace("4/min", "100/min")
            written(
                file, renamed.replace("[fairness.tiers]", 'headers = "x-ratelimit"\n[fairness.tiers]')
            )
            await asyncio.sleep(14)
            assert [state for state, _ in made.changes()] == ["reloaded"]
            answer = await waiting
            assert answer.headers["ratelimit"].startswith('"tier:free";r=1;')
            assert (await client.get("/hello")).headers["x-ratelimit-limit"] == "100"


async def test_between_the_class_and_the_limits_of_a_request_the_tier_may_vanish(tmp_path: Path) -> None:
    """Admission saw the old policy, fairness the new: no tier is looked for that is not there."""
    file = written(tmp_path / "headworks.toml")
    async with running(file) as made:
        await made.left(key="secret-key-number-one")
        identify = made.works._identifier.identify

        def changing(scope: Any) -> Any:
            identity = identify(scope)
            made.works._adopt(parse_text(POLICY.replace("free", "other")))
            return identity

        made.works._identifier.identify = changing  # type: ignore[method-assign]  # that is the test
        assert (await made.left(key="secret-key-number-one")).startswith('"tier:other";')


def parse_text(text: str) -> Any:
    import tomllib

    return parse(tomllib.loads(text), "test", {})


async def test_requests_under_a_storm_of_changes_are_all_answered(tmp_path: Path) -> None:
    """Whichever policy a request meets, it is a whole one: no 500, and a tier that one of them has."""
    file = written(tmp_path / "headworks.toml")
    texts = [
        POLICY.replace("4/min", f"{n}00/min").replace("free", name)
        for n, name in enumerate(("free", "gold", "none"), 1)
    ]
    async with running(file) as made:

        async def change() -> None:
            for n in range(40):
                written(file, texts[n % 3])
                await asyncio.sleep(11)

        changing = asyncio.create_task(change())
        async with made.client("secret-key-number-one") as client:
            while not changing.done():
                await asyncio.sleep(0.7)
                answer = await client.get("/hello?for=0.7")
                assert answer.status_code in (200, 429)
                name, _, limit = answer.headers["ratelimit-policy"].partition(";q=")
                assert (name, limit.partition(";")[0]) in {
                    ('"tier:free"', "4"),
                    ('"tier:free"', "100"),
                    ('"tier:gold"', "200"),
                    ('"tier:none"', "300"),
                }
        assert len(made.changes()) == 40


async def test_without_the_setting_nobody_looks(tmp_path: Path) -> None:
    """The file is read once; what is not asked for costs nothing."""
    file = written(tmp_path / "headworks.toml", POLICY.replace('reload = "5s"\n', ""))
    async with running(file) as made:
        written(file, "broken")
        await asyncio.sleep(3600)
        assert made.changes() == []
        assert made.works._policy_watch is None
        assert not [task for task in asyncio.all_tasks() if "policy" in task.get_name()]


async def test_looking_ends_with_the_service(tmp_path: Path) -> None:
    file = written(tmp_path / "headworks.toml")
    async with running(file) as made:
        assert [task for task in asyncio.all_tasks() if "policy" in task.get_name()]
    written(file, POLICY.replace("4/min", "5/min"))
    await asyncio.sleep(60)
    assert made.changes() == []
    assert not [task for task in asyncio.all_tasks() if "policy" in task.get_name()]


def test_differences_are_named_as_in_the_file() -> None:
    """By alias, down to the value; of keys only that there is a difference."""
    old = parse_text(POLICY)
    assert list(differences(old, old)) == []
    new = parse_text(
        POLICY.replace('rate = "4/min"', 'rate = "4/min", class = "critical"').replace("-one", "-two")
    )
    assert list(differences(old, new)) == [
        ("fairness", "tiers", "free", "class"),
        ("fairness", "keys"),
    ]
