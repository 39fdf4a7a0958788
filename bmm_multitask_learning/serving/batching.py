"""Micro-batching: requests that wait at the same time go through the model together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class _Waiting(NamedTuple, Generic[Q, A]):
    query: Q
    size: int
    answer: asyncio.Future[A]


class Batcher(Generic[Q, A]):
    """Joins queries that arrive within a few milliseconds, or while a pass runs, into one pass.

    Passes run one after the other, each in a thread, so that the event loop stays free. A pass
    that fails is made again for each of its queries alone: only those that are at fault see the
    error.

    Args:
        answer: from queries to as many answers, in their order.
        max_size: sizes of the queries of a pass add up to this at most; a larger query goes alone.
        window: seconds to wait for company before the first pass.

    Example:
        >>> double = Batcher(lambda queries: [2 * q for q in queries], max_size=10)
        >>> async def both():
        ...     return await asyncio.gather(double(1, size=1), double(2, size=1))
        >>> asyncio.run(both())
        [2, 4]
    """

    def __init__(
        self, answer: Callable[[list[Q]], list[A]], *, max_size: int, window: float = 0.002
    ) -> None:
        self.answer = answer
        self.max_size = max_size
        self.window = window
        self._waiting: list[_Waiting[Q, A]] = []
        self._work: asyncio.Task[None] | None = None

    async def __call__(self, query: Q, *, size: int) -> A:
        """The answer to one query of `size` rows."""
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(query, size, future))
        if self._work is None:
            self._work = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        try:
            await asyncio.sleep(self.window)
            while self._waiting:
                await self._pass(self._take())
        finally:
            self._work = None

    def _take(self) -> list[_Waiting[Q, A]]:
        """The queries that waited longest, as many as one pass takes."""
        total, count = 0, 0
        for each in self._waiting:
            total += each.size
            if count and total > self.max_size:
                break
            count += 1
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken

    async def _pass(self, batch: list[_Waiting[Q, A]]) -> None:
        try:
            answers = await asyncio.to_thread(self.answer, [each.query for each in batch])
        except Exception as error:  # noqa: BLE001  # whatever it is, it is its query's answer
            if len(batch) > 1:
                for each in batch:
                    await self._pass([each])
            elif not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        for each, answer in zip(batch, answers, strict=True):
            if not each.answer.done():  # its client may have gone
                each.answer.set_result(answer)
