"""The minibatches of one family, which can be taken up again where they were left."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from ..data import Batch, TaskData


@final
class BatchStream:
    """Endless batches of one family; row weights scale each to the whole.

    An epoch is drawn as a whole when it begins, so that the generator's state at that moment and
    the number of batches taken since are all there is to know.

    Args:
        data: all rows.
        batch_size: rows of a batch; None: every batch is `data` itself.
        generator: the only source of randomness, which other streams may share.
    """

    def __init__(self, data: TaskData, batch_size: int | None, generator: torch.Generator) -> None:
        self.data = data
        self.batch_size = batch_size
        self.generator = generator
        self.begin = generator.get_state()
        self.taken = 0
        self._epoch: list[Batch] = []

    def next(self) -> TaskData:
        """The next batch."""
        if self.batch_size is None:
            return self.data
        if self.taken == len(self._epoch):
            self.resume(self.generator.get_state(), 0)
        self.taken += 1
        return self.data.batch(self._epoch[self.taken - 1])

    def resume(self, begin: Tensor, taken: int) -> None:
        """Go to the place after `taken` batches of the epoch drawn at the state `begin`."""
        if self.batch_size is None:
            return
        self.generator.set_state(begin)
        size = min(self.batch_size, self.data.num_rows)
        self.begin = begin
        self.taken = taken
        self._epoch = list(self.data.batches(size, generator=self.generator))
