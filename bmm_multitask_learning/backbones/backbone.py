"""What a backbone of this library has, so that a saved model can make it again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import nn


class Backbone(nn.Module, ABC):
    """A module from inputs to features that a saved model makes again by itself.

    Any `nn.Module` is a backbone; one that is not of this kind is given to `load` by hand.
    """

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments for a module of the same architecture, fit for JSON.

        A module among them is described in turn; tensors are saved apart.
        """
