"""The bound over iterations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bmm_multitask_learning.plots._canvas import (
    BLUE,
    VERMILION,
    Array,
    Floats,
    Integers,
    as_array,
    axis,
    counted,
    grid,
    ink,
    legend,
    tone,
    whole_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A history that falls in more than this share of its steps is stochastic and gets a running mean.
_NOISY_FROM = 0.05


def bound(history: Array, *, ax: Axes | None = None) -> Axes:
    """Draw what an engine ascends, iteration by iteration.

    A history that rises (coordinate ascent) carries a small second picture, the improvement of
    each iteration on a logarithmic scale; a fall is marked. A noisy one (stochastic gradients)
    carries its running mean over a twentieth of the steps instead, and the limits leave out the
    first descent.

    Args:
        history: (T,) values of the bound or evidence in nats, one an iteration.
        ax: axis to draw on.

    Returns:
        The axis; the second picture is `ax.child_axes[0]` where there is one.

    Raises:
        ValueError: values that are not finite.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = bound([-90.0, -60.0, -52.0, -51.0, -50.9], ax=Figure().subplots())
        >>> ax.child_axes[0].lines[0].get_ydata().round(1)
        array([30. ,  8. ,  1. ,  0.1])
    """
    values = as_array(history, "history", ("T",))
    if not np.all(np.isfinite(values)):
        first = int(np.argmin(np.isfinite(values)))
        raise ValueError(
            f"history must be finite; got {values[first]} at iteration {first + 1}. "
            "The fit went wrong there: a smaller learning rate or scaled features may help."
        )
    ax = axis(ax, (6.4, 4.0))
    grid(ax)
    steps = np.arange(1, len(values) + 1)
    falls = np.flatnonzero(np.diff(values) < -1e-9 * np.abs(values[:-1])) + 1
    noisy = len(falls) > _NOISY_FROM * len(values) and len(values) >= 20
    if noisy:
        _noisy(ax, steps, values)
    else:
        _rising(ax, steps, values, falls)
    ax.set_xlabel("iteration")
    ax.set_ylabel("bound [nats]")
    whole_ticks(ax.xaxis)
    if len(values) == 1:
        ax.set_xlim(0, 2)
    ax.ticklabel_format(axis="y", style="plain", useOffset=False)
    legend(ax, loc="lower right")
    return ax


def _rising(ax: Axes, steps: Integers, values: Floats, falls: Integers) -> None:
    few, blue = len(values) <= 40, tone(ax, BLUE)
    marker: dict[str, Any] = {"marker": "o" if few else "", "markersize": 4}
    ax.plot(steps, values, color=blue, linewidth=1.8, **marker)
    ax.plot(steps[-1:], values[-1:], "o", color=blue, markersize=6)
    ax.margins(0.04, 0.1)
    ax.annotate(
        f"{values[-1]:,.2f}".replace("-", "\N{MINUS SIGN}"),
        (float(steps[-1]), float(values[-1])),
        xytext=(0, 7),
        textcoords="offset points",
        ha="right",
        fontsize="small",
        color=ink(ax, 0.85),
    )
    if falls.size:
        text = f"fell ({counted(falls.size, 'time')})"
        ax.plot(
            steps[falls], values[falls], "v", color=tone(ax, VERMILION), markersize=7, label=text
        )
    gains = np.diff(values)
    if np.count_nonzero(gains > 0) >= 3:
        _improvements(ax, steps[1:], gains, few=few)


def _improvements(ax: Axes, steps: Integers, gains: Floats, *, few: bool) -> None:
    inset = ax.inset_axes((0.42, 0.2, 0.54, 0.48))
    inset.patch.set_alpha(0.85)
    up, blue = gains > 0, tone(ax, BLUE)
    marker = "o" if few else ""
    inset.plot(steps[up], gains[up], color=blue, linewidth=1.2, marker=marker, markersize=2.5)
    inset.set_yscale("log")
    for side in ("top", "right"):
        inset.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        inset.spines[side].set_color(ink(ax, 0.35))
    inset.minorticks_off()
    inset.tick_params(labelsize="x-small", color=ink(ax, 0.35), labelcolor=ink(ax, 0.7))
    whole_ticks(inset.xaxis, 4)
    inset.set_title("improvement [nats]", fontsize="small", color=ink(ax, 0.8), loc="left")


def _noisy(ax: Axes, steps: Integers, values: Floats) -> None:
    blue = tone(ax, BLUE)
    width = max(5, len(values) // 20)
    kernel = np.ones(width) / width
    mean = np.convolve(values, kernel, mode="valid")
    ax.plot(steps, values, color=blue, linewidth=0.6, alpha=0.35, label="each step")
    centre = steps[(width - 1) // 2 :][: len(mean)]
    ax.plot(centre, mean, color=blue, linewidth=2.0, label=f"mean of {width} steps")
    low, high = np.quantile(values[len(values) // 20 :], [0.005, 1.0])
    ax.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
