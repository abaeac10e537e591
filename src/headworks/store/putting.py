"""A question of one who is no task: what is told its answer, and tells it on."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from typing import TYPE_CHECKING

from headworks.store.deadline import Bound, Deadlines
from headworks.store.protocol import Hears, Learns, Leaves, Question
from headworks.verdict import Verdict

if TYPE_CHECKING:
    from headworks.store.ladder import LadderStore


class Put(Bound):
    """A question that was put, and who hears of it: once, in the context in which it was put."""

    __slots__ = ("_context", "_first", "_ladder", "_question", "_round", "_to", "_within", "call")

    call: Leaves | None
    """What it travels in, until it is done."""

    def __init__(
        self,
        ladder: LadderStore,
        within: Deadlines,
        question: Question,
        to: Hears,
        first: Learns | None,
    ) -> None:
        self._ladder, self._within, self._round = ladder, within, ladder.round
        self._question = question
        self._to, self._first, self._context = to, first, copy_context()
        self.lagged, self.look = False, None

    def done(self) -> bool:
        return self.call is None

    def set_result(self, verdict: Verdict) -> None:
        """What is raised by who hears is not of those who travel with it, nor a fault of the reply."""
        self.call = None
        self._within.end(self)
        self._ladder.heard(self._question, verdict)
        try:
            self._context.run(self._tell, verdict)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            told = {"message": "who put a question raised when told the verdict", "exception": error}
            asyncio.get_running_loop().call_exception_handler(told)

    def set_exception(self, error: BaseException) -> None:
        """In a turn of its own, as this may be the one in which it was put."""
        self.call = None
        self._within.end(self)
        asyncio.get_running_loop().call_soon(self._fail, error, context=self._context)

    def expire(self) -> None:
        call, self.call = self.call, None
        self._within.end(self)  # its timer leads back here, and would leave it to the collector
        if call is not None:
            call.leave()
        self._context.run(self._fail, self.late())

    def _fail(self, error: BaseException) -> None:
        self._tell(self._ladder.without(self._question, error, self._round))

    def _tell(self, verdict: Verdict) -> None:
        try:
            if self._first is not None:
                self._first(self._question[0], self.began, verdict)
        finally:
            self._to(verdict)
