r"""Which rows a minibatch has: samplers, each with scales that leave sums over rows unbiased.

A sampler decides how often the rows of each task come. What it decides is undone by `Batch.scale`,
so that a bound on minibatches estimates the bound on all rows whatever the sampler: samplers move
the noise of a gradient between tasks, not its mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Rows of a minibatch; Σ_b scale_b ℓ(index_b) estimates Σ_n ℓ(n) without bias."""

    index: Tensor  # type: ignore[assignment]  # (B,) rows; hides tuple.index
    scale: Tensor  # (B,) factors


class RowsByTask(NamedTuple):
    """Where the rows of each task are."""

    order: Tensor  # (N,) rows sorted by task
    counts: Tensor  # (K,) rows of each task
    like: Tensor  # gives scales their dtype and device

    def batch(self, tasks: Tensor, place: Tensor, share: Tensor) -> Batch:
        """Row ``place`` of each of ``tasks``, (B,) each: scale = n_k / (B p_k), p_k the share."""
        starts = self.counts.cumsum(0) - self.counts
        scale = self.counts[tasks] / (len(tasks) * share[tasks])
        return Batch(self.order[starts[tasks] + place], scale.to(self.like.dtype))

    def uniform(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Numbers drawn from [0, 1) where the generator lives, moved to the rows."""
        draws = torch.rand(
            shape, generator=generator, device=generator.device, dtype=torch.float64
        )
        return draws.to(self.like.device)


class Sampler(ABC):
    r"""Draws the rows of minibatches: a task k by its share $p_k$, then one of its rows uniformly.

    $$E\Big[\sum_{b \le B} s_b\,\ell_b\Big] = \sum_n \ell_n, \qquad s_b = \frac{n_k}{B\,p_k}$$

    for the row b of task k in a batch of B rows. A subclass says what the shares are; it may also
    draw in a way of its own (`batches`).

    Example:
        >>> class FirstTaskOften(Sampler):
        ...     def shares(self, counts, step):
        ...         p = (counts > 0).double()
        ...         p[0] *= 4
        ...         return p / p.sum()
        >>> from bmm_multitask_learning import TaskData
        >>> data = TaskData(torch.ones(6, 1), torch.ones(6), [0, 0, 1, 1, 2, 2])
        >>> generator = torch.Generator().manual_seed(0)
        >>> batch = next(data.batches(3, generator=generator, sampling=FirstTaskOften()))
        >>> data.task[batch.index], batch.scale
        (tensor([2, 1, 0]), tensor([4., 4., 1.]))
    """

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"

    @abstractmethod
    def shares(self, counts: Tensor, step: int) -> Tensor:
        """The share of each task in the batch of a step, by the number of its rows.

        Args:
            counts: (K,) rows of each task; at least one is positive.
            step: number of the batch, counted from 0 over all epochs.

        Returns:
            (K,) probabilities, positive for tasks with rows and zero for those without.
        """

    def batches(
        self, rows: RowsByTask, batch_size: int, generator: torch.Generator, step: int
    ) -> Iterator[Batch]:
        """One epoch: ⌈N/B⌉ batches of rows drawn with replacement.

        Args:
            rows: where the rows of each task are.
            batch_size: B.
            generator: source of the draws.
            step: number of the first batch, for shares that change as batches go by.
        """
        n = rows.counts.to(torch.float64)
        last = int(
            rows.counts.nonzero()[-1, 0]
        )  # rounding of the sum must not reach an empty task
        for number in range(-(-len(rows.order) // batch_size)):
            p = self.shares(rows.counts, step + number).to(n)
            draws = rows.uniform((2, batch_size), generator)
            k = torch.searchsorted(p.cumsum(0), draws[0], right=True).clamp(max=last)
            place = torch.minimum((draws[1] * n[k]).long(), rows.counts[k] - 1)
            yield rows.batch(k, place, p)


@final
class Proportional(Sampler):
    """Tasks by their rows: an epoch is one shuffled pass in which each row comes once.

    Example:
        >>> Proportional().shares(torch.tensor([1, 3]), 0)
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """

    def shares(self, counts: Tensor, step: int) -> Tensor:
        n = counts.double()
        return n / n.sum()

    def batches(
        self, rows: RowsByTask, batch_size: int, generator: torch.Generator, step: int
    ) -> Iterator[Batch]:
        num_rows = len(rows.order)
        shuffled = torch.randperm(num_rows, generator=generator, device=generator.device)
        for index in torch.split(shuffled.to(rows.like.device), batch_size):
            yield Batch(index, rows.like.new_full((len(index),), num_rows / len(index)))


@final
class Tempered(Sampler):
    r"""Tasks by $p_k \propto n_k^t$: small tasks come more often than their rows would have it.

    Args:
        temperature: t in [0, 1]; 0 draws all tasks equally often, 1 by their rows.

    Raises:
        ValueError: for a temperature outside [0, 1].

    Example:
        >>> Tempered(0.5).shares(torch.tensor([1, 9, 0]), 0)
        tensor([0.2500, 0.7500, 0.0000], dtype=torch.float64)
    """

    def __init__(self, temperature: float) -> None:
        _check_temperature(temperature, "temperature")
        self.temperature = float(temperature)

    def shares(self, counts: Tensor, step: int) -> Tensor:
        return _tempered(counts, self.temperature)


@final
class Annealed(Sampler):
    r"""Tasks by $p_k \propto n_k^{t}$ with t going from one temperature to another over steps.

    $$t_s = t_0 + (t_1 - t_0)\,\min(1, s / S)$$

    By default it begins with tasks by their rows and ends with all tasks equally often: large
    tasks shape the shared part first, small ones are heard at the end.

    Args:
        steps: S, batches until the last temperature is reached.
        start: $t_0$ in [0, 1].
        end: $t_1$ in [0, 1].

    Raises:
        ValueError: for a temperature outside [0, 1] or fewer than one step.

    Example:
        >>> sampler = Annealed(steps=100)
        >>> [sampler.shares(torch.tensor([1, 9]), step)[0].item() for step in (0, 50, 200)]
        [0.1, 0.25, 0.5]
    """

    def __init__(self, steps: int, *, start: float = 1.0, end: float = 0.0) -> None:
        _check_temperature(start, "start")
        _check_temperature(end, "end")
        if steps < 1:
            raise ValueError(f"steps must be at least 1; got {steps}.")
        self.steps, self.start, self.end = steps, start, end

    def shares(self, counts: Tensor, step: int) -> Tensor:
        done = min(1.0, step / self.steps)
        return _tempered(counts, self.start + (self.end - self.start) * done)


@final
class RoundRobin(Sampler):
    r"""Batches of one task each, tasks with rows in turn: what heads of different kinds need.

    Over a cycle of K batches every task comes once, so that batches are unbiased on average over a
    cycle, $\frac1K \sum_{b} s_b \ell_b$ with $s_b = K n_k / B$, and not one by one.

    Example:
        >>> [RoundRobin().shares(torch.tensor([5, 0, 2]), step).tolist() for step in (0, 1, 2)]
        [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """

    def shares(self, counts: Tensor, step: int) -> Tensor:
        present = counts.nonzero()[:, 0]
        turn = torch.zeros_like(counts, dtype=torch.float64)
        turn[present[step % len(present)]] = 1.0
        return turn

    def batches(
        self, rows: RowsByTask, batch_size: int, generator: torch.Generator, step: int
    ) -> Iterator[Batch]:
        tasks = int((rows.counts > 0).sum())
        for batch in super().batches(rows, batch_size, generator, step):
            yield Batch(batch.index, tasks * batch.scale)


@final
class Resampled(Sampler):
    r"""A shuffled pass with equally many rows of every task, repeated or left out.

    With "over", m is the number of rows of the largest task: every row comes, those of smaller
    tasks again and again, once more only after all others of the task have come. With "under", m
    is that of the smallest: of larger tasks a new random part comes every epoch. An epoch has K m
    rows.

    Args:
        to: "over" or "under".

    Raises:
        ValueError: for another word.

    Example:
        >>> from bmm_multitask_learning import TaskData
        >>> data = TaskData(torch.ones(4, 1), torch.ones(4), [0, 0, 0, 1])
        >>> generator = torch.Generator().manual_seed(0)
        >>> epoch = data.batches(2, generator=generator, sampling=Resampled("over"))
        >>> torch.cat([batch.index for batch in epoch]).sort().values
        tensor([0, 1, 2, 3, 3, 3])
    """

    def __init__(self, to: Literal["over", "under"]) -> None:
        if to not in ("over", "under"):
            raise ValueError(f'to must be "over" or "under"; got {to!r}.')
        self.to = to

    def shares(self, counts: Tensor, step: int) -> Tensor:
        return _tempered(counts, 0.0)

    def batches(
        self, rows: RowsByTask, batch_size: int, generator: torch.Generator, step: int
    ) -> Iterator[Batch]:
        present = rows.counts[rows.counts > 0]
        each = int(present.max() if self.to == "over" else present.min())
        task, place = _dealt(rows, each, generator)
        shuffled = rows.uniform((len(task),), generator).argsort()
        share = self.shares(rows.counts, step)
        for part in torch.split(shuffled, batch_size):
            yield rows.batch(task[part], place[part], share)


def _dealt(rows: RowsByTask, each: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``each`` rows of every task, as task and place in it, from shuffled decks of its rows."""
    n = rows.counts
    decks = torch.where(n > 0, -(-each // n.clamp(min=1)), 0)
    deck_task = torch.repeat_interleave(decks)
    size = n[deck_task]
    deck = torch.repeat_interleave(size)  # of each card
    first = size.cumsum(0) - size
    place = torch.arange(len(deck), device=n.device) - first[deck]
    shuffled = rows.uniform((len(deck),), generator).argsort()
    shuffled = shuffled[deck[shuffled].argsort(stable=True)]  # within each deck
    task = deck_task[deck]  # sorted, so that the cards in their new order have the same tasks
    cards = n * decks
    dealt = torch.arange(len(deck), device=n.device) - (cards.cumsum(0) - cards)[task]
    return task[dealt < each], place[shuffled][dealt < each]


def _tempered(counts: Tensor, temperature: float) -> Tensor:
    n = counts.double()
    mass = torch.where(counts > 0, n**temperature, 0.0)
    return mass / mass.sum()


def _check_temperature(value: float, name: str) -> None:
    if isinstance(value, bool) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1]; got {value!r}.")


def as_sampler(sampling: Sampler | Literal["proportional", "uniform"] | float) -> Sampler:
    """The sampler that a user's ``sampling`` stands for."""
    if isinstance(sampling, Sampler):
        return sampling
    if sampling == "uniform":
        return Tempered(0.0)
    if sampling == "proportional" or (sampling == 1.0 and not isinstance(sampling, bool)):
        return Proportional()
    if isinstance(sampling, str | bool) or not 0.0 <= sampling < 1.0:
        raise ValueError(
            'sampling must be "proportional", "uniform", a temperature in [0, 1] or a Sampler; '
            f"got {sampling!r}."
        )
    return Tempered(sampling)
