"""Rows that hold several words or tokens, as many as they happen to have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Places(NamedTuple):
    """Where the words of N texts stand in features (N, W, D).

    text: (M,) number of the text of each word.
    place: (M,) its number within the text.
    """

    text: Tensor
    place: Tensor

    @classmethod
    def of(cls, phi: Tensor) -> Places:
        """All words: features (N, W, D) are NaN at places that hold none."""
        return cls(*(~phi[..., 0].isnan()).nonzero(as_tuple=True))

    @classmethod
    def labelled(cls, phi: Tensor, y: Tensor) -> Places:
        """The words with a label y (N, V) that is not NaN.

        Raises:
            ValueError: for a label beyond the words of its text.
        """
        there = ~phi[..., 0].isnan()
        pad = max(y.shape[1] - there.shape[1], 0)
        observed = torch.nn.functional.pad(
            ~y.isnan(), (0, max(there.shape[1] - y.shape[1], 0)), value=False
        )
        beyond = observed & ~torch.nn.functional.pad(there, (0, pad), value=False)
        if bool(beyond.any()):
            row, place = beyond.nonzero()[0].tolist()
            raise ValueError(
                f"y has a label for word {place} of row {row}, which has {int(there[row].sum())} "
                "words. Labels are (N, W), one for each word of the text, NaN beyond the last."
            )
        return cls(*observed.nonzero(as_tuple=True))

    def among(self, value: Tensor) -> Tensor:
        """(M, ...) of values (N, W, ...); NaN for words whose place is beyond W."""
        beyond = int(self.place.max()) + 1 - value.shape[1] if len(self.place) else 0
        if beyond > 0:
            value = torch.nn.functional.pad(value, (0, beyond), value=torch.nan)
        return value[self.text, self.place]


def joined(inputs: Sequence[Tensor]) -> Tensor:
    """Inputs of several families as one; rows of tokens are padded to the same length."""
    if inputs[0].is_floating_point():
        return torch.cat(list(inputs))
    length = max(x.shape[-1] for x in inputs)
    pad = torch.nn.functional.pad
    return torch.cat([pad(x, (0, length - x.shape[-1]), value=-1) for x in inputs])
