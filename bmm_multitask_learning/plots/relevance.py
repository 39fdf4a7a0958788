"""Which groups of features matter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bmm_multitask_learning.plots._canvas import (
    BLUE,
    RASTERISE_FROM,
    Array,
    Names,
    as_array,
    as_names,
    axis,
    counted,
    grid,
    name_columns,
    tone,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Below this share of the largest a group is drawn at the foot of the axis.
_SMALLEST_SHARE = 1e-8


def relevance(relevance: Array, *, groups: Names | None = None, ax: Axes | None = None) -> Axes:
    """Draw the relevance of each group of features on a logarithmic scale, the largest first.

    A gap in the row of points tells the groups that matter from the others.

    Args:
        relevance: (G,) non-negative, as `SparseBayesian.relevance`.
        groups: G names of groups, or of features where each is a group.
        ax: axis to draw on.

    Returns:
        The axis.

    Raises:
        ValueError: for a negative relevance, one that is not finite, or names that are not G.

    Example:
        >>> from matplotlib.figure import Figure
        >>> groups = ["age", "time", "sex"]
        >>> ax = relevance([0.1, 3.0, 0.002], groups=groups, ax=Figure().subplots())
        >>> [tick.get_text() for tick in ax.get_xticklabels()]
        ['time', 'age', 'sex']
    """
    values = as_array(relevance, "relevance", ("G",))
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(
            f"relevance must be finite and non-negative; got {values.min():.3g} to "
            f"{values.max():.3g}."
        )
    names = None if groups is None else as_names(groups, len(values), "groups")
    order = np.argsort(-values, kind="stable")
    largest = float(values.max()) or 1.0
    shown = np.maximum(values[order], _SMALLEST_SHARE * largest)

    ax = axis(ax, (7.0, 3.6))
    ax.set_yscale("log")
    place = np.arange(len(shown))
    raster = len(shown) >= RASTERISE_FROM
    ax.plot(place, shown, "o", color=tone(ax, BLUE), markersize=4.5, rasterized=raster)
    spare = max(0.01 * len(shown), 0.6)
    ax.set_xlim(-spare, len(shown) - 1 + spare)
    ax.set_ylabel("relevance: mean square of the weights,\nin units of the noise")
    grid(ax, "y")
    ordered = None if names is None else [names[g] for g in order]
    caption = f"{counted(len(shown), 'group')} of features, the largest first"
    name_columns(ax, ordered, len(shown), caption)
    return ax
