"""What all pictures share: checked arrays, an axis, colours, and labels that fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.image import AxesImage
    from matplotlib.legend import Legend

Array: TypeAlias = ArrayLike | Tensor
Names: TypeAlias = Sequence[object] | NDArray[Any] | Tensor
Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]
Texts: TypeAlias = NDArray[np.str_]

# Okabe and Ito's colours, which stay apart for colour-blind readers, the palest replaced; ordered
# so that the first few differ most.
PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#882255",
    "#8A8A4A",
)
BLUE, VERMILION = PALETTE[:2]

# The line of perfect agreement, or of a reference value.
DASHED: dict[str, Any] = {"linewidth": 1.0, "linestyle": (0, (4, 3)), "zorder": 2.2}

# Beyond this step a thinned list of names no longer tells which is which.
LARGEST_STEP = 3

# From this many parts on, a layer is drawn as pixels: vector files stay small and quick.
RASTERISE_FROM = 400


def as_array(value: Array, name: str, shape: tuple[int | str, ...]) -> Floats:
    """The value as a float array of the given shape; a letter stands for any size."""
    host = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    array = np.asarray(host, dtype=np.float64)
    fits = array.ndim == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
        raise ValueError(f"{name} must have shape {wanted}; got {array.shape}.")
    if array.size == 0:
        raise ValueError(f"{name} must not be empty; got shape {array.shape}.")
    return array


def as_labels(value: Array, name: str, size: int) -> Integers:
    """The value as `size` non-negative integers."""
    labels = as_array(value, name, (size,))
    if not np.all(np.isfinite(labels) & (labels >= 0) & (labels == np.round(labels))):
        raise ValueError(
            f"{name} must hold integers 0, 1, 2, ...; got {labels[:5].tolist()}... "
            "Pass the index of each task's cluster, not its probability."
        )
    return labels.astype(np.int64)


def as_names(names: Names, size: int, name: str = "tasks") -> list[str]:
    """The names as text, checked to be one for each."""
    plain = names.tolist() if isinstance(names, Tensor | np.ndarray) else names
    texts = [str(each) for each in plain]
    if len(texts) != size:
        raise ValueError(f"{name} must hold {size} names, one for each; got {len(texts)}.")
    return texts


def counted(count: int, noun: str) -> str:
    """1 task, 2 tasks, 1,000 tasks."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def per_cent(share: float, digits: int = 0) -> str:
    """0.905 as 90.5 %."""
    return f"{100 * share:.{digits}f} %"


def axis(ax: Axes | None, size: tuple[float, float] = (6.4, 4.4)) -> Axes:
    """The axis itself, or the one of a new figure of `size` inches; light frame either way."""
    if ax is None:
        try:
            from matplotlib import pyplot as plt
        except ImportError as error:
            raise ImportError(
                "plots need matplotlib, which is not installed; "
                "install the extra: pip install 'bmm-multitask-learning[plots]'"
            ) from error

        _, ax = plt.subplots(figsize=size, layout="constrained")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        ax.spines[side].set_color(ink(ax, 0.45))
    ax.tick_params(color=ink(ax, 0.45), labelcolor=ink(ax, 0.8))
    return ax


def ink(ax: Axes, strength: float) -> str:
    """The text colour of the reader's style, faded towards the background."""
    import matplotlib as mpl
    from matplotlib.colors import to_hex, to_rgb

    text = np.array(to_rgb(mpl.rcParams["text.color"]))
    return to_hex(tuple(strength * text + (1 - strength) * np.array(to_rgb(paper(ax)))))


def paper(ax: Axes) -> str:
    """The background of the axis."""
    from matplotlib.colors import to_hex

    return to_hex(ax.get_facecolor())


def is_dark(ax: Axes) -> bool:
    """Whether the background is dark."""
    from matplotlib.colors import to_rgb

    return float(np.mean(to_rgb(paper(ax)))) < 0.4


def tone(ax: Axes, colour: str) -> str:
    """The colour itself, or a lighter one on a dark background."""
    from matplotlib.colors import to_hex, to_rgb

    return to_hex(tuple(0.7 * np.array(to_rgb(colour)) + 0.3)) if is_dark(ax) else colour


def cluster_colours(ax: Axes, count: int) -> list[str]:
    """One colour a cluster; beyond the palette's eight its darker, then its lighter shades."""
    from matplotlib.colors import to_hex, to_rgb

    shades = []
    for index in range(count):
        colour = np.array(to_rgb(PALETTE[index % len(PALETTE)]))
        turn = (index // len(PALETTE)) % 3
        mixed = (colour, 0.6 * colour, 0.5 * colour + 0.5)[turn]
        shades.append(tone(ax, to_hex(tuple(mixed))))
    return shades


def grid(ax: Axes, which: str = "both") -> None:
    """A faint grid behind everything."""
    ax.set_axisbelow(True)
    ax.grid(visible=True, axis=which, color=ink(ax, 0.1), linewidth=0.7)  # type: ignore[arg-type]


def legend(ax: Axes, **options: Any) -> Legend | None:
    """A frameless legend of what carries a label; none where nothing does."""
    handles, _ = ax.get_legend_handles_labels()
    if not handles:
        return None
    look: dict[str, Any] = {"frameon": False, "fontsize": "small", "labelcolor": ink(ax, 0.85)}
    return ax.legend(**{**look, **options})


def legend_above(ax: Axes, columns: int) -> Legend | None:
    """The legend in rows above the axis, where it covers no data."""
    place: dict[str, Any] = {
        "loc": "lower left",
        "bbox_to_anchor": (0.0, 1.0),
        "borderaxespad": 0.3,
    }
    tight: dict[str, Any] = {"handletextpad": 0.4, "columnspacing": 1.3, "borderpad": 0.0}
    return legend(ax, ncols=columns, **place, **tight)


def settle(ax: Axes) -> None:
    """Let the figure's layout, if it has one, place the axis with what it holds so far."""
    figure = ax.figure.figure
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)


def points_long(ax: Axes, *, vertical: bool) -> float:
    """The length of the axis on paper, in points."""
    settle(ax)
    extent = ax.get_window_extent()
    pixels = extent.height if vertical else extent.width
    return float(pixels) * 72.0 / float(ax.figure.dpi)


def label_step(ax: Axes, count: int, *, vertical: bool, size: float = 7.0) -> int:
    """Every how many-th of `count` labels finds room at a font size in points."""
    room = max(1, int(points_long(ax, vertical=vertical) / (1.15 * size)))
    return -(-count // room)


def label_ticks(
    target: Axis, names: Sequence[str], step: int, *, first: int = 0, **options: Any
) -> None:
    """Every step-th name, the first one at `first`; no tick marks."""
    places = list(range(first, first + len(names), step))
    target.set_ticks(places, list(names)[::step], **options)
    target.set_tick_params(length=0)


def name_columns(ax: Axes, names: Sequence[str] | None, count: int, caption: str) -> None:
    """The names of `count` columns below them; the caption where there are none, or no room."""
    step = label_step(ax, count, vertical=False)
    if names is None or step > LARGEST_STEP:
        no_ticks(ax.xaxis)
        ax.set_xlabel(caption)
        return
    turn, size = 90 if count > 8 else 0, 7 if count > 15 else 9
    label_ticks(ax.xaxis, names, step, rotation=turn, fontsize=size)


def colour_bar(ax: Axes, image: AxesImage, label: str, **place: Any) -> None:
    """The scale of an image's colours, beside it."""
    bar = ax.figure.colorbar(image, ax=ax, **place)
    bar.set_label(label, color=ink(ax, 0.85))
    bar.outline.set_visible(False)
    bar.ax.tick_params(color=ink(ax, 0.45), labelcolor=ink(ax, 0.8), labelsize="small")


def whole_ticks(target: Axis, bins: int | Literal["auto"] = "auto") -> None:
    """Ticks at round whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    target.set_major_locator(MaxNLocator(bins, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def no_ticks(target: Axis) -> None:
    """Neither ticks nor tick labels."""
    target.set_ticks([])
