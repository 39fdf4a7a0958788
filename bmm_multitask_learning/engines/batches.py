"""The minibatches of one family, which can be taken up again where they were left."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from ..data import Batch, Sampler, TaskData


@final
class BatchStream:
    """Endless batches of one family; row weights scale each to the whole.

    An epoch is drawn as a whole when it begins, so that the generator's state at that moment and
    the numbers of batches taken before and since are all there is to know.

    Args:
        data: all rows.
        batch_size: rows of a batch; None: every batch is `data` itself.
        generator: the only source of randomness, which other streams may share.
        sampler: draws the rows of a batch.
    """

    def __init__(
        self,
        data: TaskData,
        batch_size: int | None,
        generator: torch.Generator,
        sampler: Sampler,
    ) -> None:
        self.data = data
        self.batch_size = batch_size
        self.generator = generator
        self.sampler = sampler
        self.begin = generator.get_state()
        self.before = 0
        self.taken = 0
        self._epoch: list[Batch] = []

    def next(self) -> TaskData:
        """The next batch."""
        if self.batch_size is None:
            return self.data
        if self.taken == len(self._epoch):
            self.resume(self.generator.get_state(), self.before + self.taken, 0)
        self.taken += 1
        return self.data.batch(self._epoch[self.taken - 1])

    def resume(self, begin: Tensor, before: int, taken: int) -> None:
        """Go to the place after `taken` batches of the epoch drawn at the state `begin`.

        Args:
            begin: of the generator.
            before: batches of the epochs before.
            taken: batches of this one.
        """
        if self.batch_size is None:
            return
        self.generator.set_state(begin)
        size = min(self.batch_size, self.data.num_rows)
        self.begin = begin
        self.before = before
        self.taken = taken
        epoch = self.data.batches(
            size, generator=self.generator, sampling=self.sampler, step=before
        )
        self._epoch = list(epoch)
