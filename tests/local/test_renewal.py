"""When a changed policy is taken over, and when it is not; in virtual time, without a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.policies import shipped

from headworks.local.renewal import LOOK, Renewal
from headworks.policy.settings import Policy


class Stack:
    """What a renewal acts on, recorded."""

    def __init__(self, file: Path) -> None:
        self.file, self.next = file, shipped()
        self.said: list[str] = []
        self.given: list[Policy] = []
        self.reads = 0
        self.full = False

    def reread(self) -> Policy:
        self.reads += 1
        return self.next

    def gateway(self, policy: Policy) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.given.append(policy)

    def write(self, policy: Policy, text: str) -> None:
        self.next = policy
        self.file.write_text(text)


async def _ready(_: Any) -> bool:
    return True


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[Stack]:
    file = folder / "headworks.toml"
    file.write_text("first")
    stack = Stack(file)
    renewal = Renewal(
        file,
        shipped(),
        reread=stack.reread,
        gateway=stack.gateway,
        pods=(),
        ready=_ready,
        say=stack.said.append,
    )
    task = asyncio.create_task(renewal.watch())
    try:
        yield stack
        assert not task.done(), "whatever happens, it goes on watching"
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def test_a_file_that_is_still_being_written_is_not_read(tmp_path: Path) -> None:
    async with watched(tmp_path) as stack:
        await asyncio.sleep(LOOK * 1.5)
        for length in range(5):  # longer at every look
            stack.write(shipped(gateway={"max_body": "2MiB"}), "half" * (length + 2))
            await asyncio.sleep(LOOK)
            assert stack.reads == 0
        await asyncio.sleep(LOOK * 2)
        assert [policy.gateway.max_body for policy in stack.given] == [2 * 1024**2]


async def test_what_cannot_be_taken_over_is_told_and_changes_nothing(tmp_path: Path) -> None:
    async with watched(tmp_path) as stack:
        other = shipped().model_copy(update={"vendors": {}})
        stack.write(other, "another vendor")
        await asyncio.sleep(LOOK * 3)
        stack.full = True
        stack.write(shipped(gateway={"max_body": "3MiB"}), "a full disk")
        await asyncio.sleep(LOOK * 3)
        assert stack.given == []
        assert stack.said == [
            "the policy names other vendors now; start the stack again to have them",
            "the gateway cannot be given the changed policy: No space left on device",
        ]


async def test_a_file_that_says_the_same_moves_nothing(tmp_path: Path) -> None:
    async with watched(tmp_path) as stack:
        stack.write(shipped(), "the same with a comment")
        await asyncio.sleep(LOOK * 3)
        assert stack.reads == 1
        assert stack.given == []
        stack.file.unlink()
        await asyncio.sleep(LOOK * 3)
