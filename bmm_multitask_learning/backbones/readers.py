r"""Readers: from the states of tokens to features of sentences or of words.

Each is a module `reader(states, x, task)`: states (N, L, D) of tokens, and the rows x (N, 2, L)
that they came from, `x[:, 0]` the ids of the tokens and `x[:, 1]` the numbers of their words, -1
where there is none. The rows' tasks are given to every reader; these do not read them.
"""

from __future__ import annotations

from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from .backbone import Backbone

_POOLINGS = ("mean", "cls", "max", "attention")
_PARTS = ("first", "mean")


def token_mask(x: Tensor) -> Tensor:
    """Which places hold a token, (N, L); the first always does, so that no row is empty.

    Example:
        >>> token_mask(torch.tensor([[[7, 8, -1], [0, 1, -1]]]))
        tensor([[ True,  True, False]])
    """
    mask = x[:, 0] >= 0
    mask[:, 0] = True
    return mask


@final
class Pooled(Backbone):
    r"""One vector a sentence: the mean, the first token, the largest, or learned attention.

    $$\phi = \sum_l a_l h_l, \qquad a_l \propto \exp(h_l^\top v)$$

    with v learned for "attention", where it starts at 0, the mean; "mean" keeps $a_l = 1/L$.

    Args:
        pooling: "mean", "cls" (the first token), "max" (over tokens, each feature by itself) or
            "attention".
        num_features: D; needed by "attention" alone.
        constant: whether the features begin with a constant 1, the intercept of every task.

    Raises:
        ValueError: for an unknown pooling, or attention without `num_features`.

    Example:
        >>> states = torch.arange(12.0).reshape(2, 3, 2)
        >>> x = torch.tensor([[[5, 6, 7], [-1, 0, -1]], [[5, 7, -1], [-1, -1, -1]]])
        >>> Pooled("mean", constant=True)(states, x)
        tensor([[1., 2., 3.],
                [1., 7., 8.]])
    """

    def __init__(
        self,
        pooling: Literal["mean", "cls", "max", "attention"] = "mean",
        *,
        num_features: int | None = None,
        constant: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in _POOLINGS:
            raise ValueError(f"pooling must be one of {_POOLINGS}; got {pooling!r}.")
        if pooling == "attention":
            if num_features is None or num_features < 1:
                raise ValueError(
                    "attention learns a vector as long as a state: give num_features, the "
                    f"encoder's num_features; got {num_features}."
                )
            self.query = nn.Parameter(torch.zeros(num_features))
        self.pooling = pooling
        self.num_features = num_features
        self.constant = constant

    def arguments(self) -> dict[str, Any]:
        return {
            "pooling": self.pooling,
            "num_features": self.num_features,
            "constant": self.constant,
        }

    def forward(self, states: Tensor, x: Tensor, task: Tensor | None = None) -> Tensor:
        """Features (N, D), or (N, 1 + D), of states (N, L, D)."""
        mask = token_mask(x)
        if self.pooling == "cls":
            pooled = states[:, 0]
        elif self.pooling == "max":
            pooled = states.masked_fill(~mask[..., None], -torch.inf).amax(1)
        else:
            logits = mask.to(states).log()
            if self.pooling == "attention":
                logits = logits + states @ self.query
            pooled = torch.einsum("nl,nld->nd", logits.softmax(-1), states)
        return _with_constant(pooled) if self.constant else pooled


@final
class Words(Backbone):
    r"""A vector for each word: its first token's state, or the mean of its tokens' states.

    Args:
        part: "first" or "mean".
        constant: whether the features begin with a constant 1, the intercept of every task.

    Raises:
        ValueError: for an unknown part.

    Example:
        >>> states = torch.arange(8.0).reshape(1, 4, 2)
        >>> x = torch.tensor([[[101, 7, 8, 9], [-1, 0, 0, 1]]])
        >>> Words("mean")(states, x)
        tensor([[[3., 4.],
                 [6., 7.]]])
    """

    def __init__(
        self, part: Literal["first", "mean"] = "first", *, constant: bool = False
    ) -> None:
        super().__init__()
        if part not in _PARTS:
            raise ValueError(f"part must be one of {_PARTS}; got {part!r}.")
        self.part = part
        self.constant = constant

    def arguments(self) -> dict[str, Any]:
        return {"part": self.part, "constant": self.constant}

    def forward(self, states: Tensor, x: Tensor, task: Tensor | None = None) -> Tensor:
        """Features (N, W, D), or (N, W, 1 + D), of states (N, L, D).

        W is the largest number of words among the rows; words that a row does not have are NaN.
        """
        word = x[:, 1]
        inside = word >= 0
        if self.part == "first":
            before = torch.cat([torch.full_like(word[:, :1], -1), word[:, :-1]], 1)
            inside = inside & (word != before)
        N, W = len(x), int(word.max()) + 1 if word.numel() else 0
        row, place = inside.nonzero(as_tuple=True)
        at = row * W + word[row, place].long()
        tokens = states[row, place]
        total = tokens.new_zeros(N * W, states.shape[-1]).index_add(0, at, tokens)
        count = tokens.new_zeros(N * W).index_add(0, at, torch.ones_like(tokens[:, 0]))
        words = total / count.clamp(min=1)[:, None]
        words = words.masked_fill((count == 0)[:, None], torch.nan).reshape(N, W, -1)
        return _with_constant(words) if self.constant else words


def _with_constant(phi: Tensor) -> Tensor:
    # NaN, where there is no word, stays
    return torch.cat([1 + 0 * phi[..., :1], phi], -1)
