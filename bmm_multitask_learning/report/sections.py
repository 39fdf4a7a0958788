"""What a report is made of: text, facts, tables and figures."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeGuard, final

from bmm_multitask_learning.report.style import DARK, LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

# matplotlib's settings that colour what is written or framed.
_INKS = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")

Image: TypeAlias = "bytes | Path | Drawing"


def is_number(value: object) -> TypeGuard[float]:
    """Whether the value is a finite number, Python's or NumPy's."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


@final
@dataclass(frozen=True)
class Text:
    """Paragraphs, separated by blank lines.

    Args:
        body: plain text.
        heading: opens a new part of the report; listed at the top where there are several.
    """

    body: str
    heading: str = ""


@final
@dataclass(frozen=True)
class Facts:
    """A row of large figures, each with what it counts.

    Args:
        items: pairs of figure and label, such as ("65", "schools").
        heading: opens a new part of the report.
    """

    items: Sequence[tuple[str, str]]
    heading: str = ""


@final
@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        name: what stands in it.
        format: Python's format of its numbers, such as ".3f", ",d" or ".1%".
        unit: unit of its numbers, written below the name.
        best: the number set in bold: the "highest", the "lowest", or the nearest to a target;
            rows that read alike after rounding share it.

    Example:
        >>> Column("coverage", format=".1%", best=0.9).text(0.883).replace(chr(0x202F), " ")
        '88.3 %'
    """

    name: str
    format: str = ""
    unit: str = ""
    best: Literal["highest", "lowest"] | float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.best, str) and self.best not in ("highest", "lowest"):
            raise ValueError(
                f'best must be "highest", "lowest", a target number or None; got "{self.best}".'
            )

    def text(self, value: object) -> str:
        """The value as it is shown: a true minus sign, a dash where there is none."""
        if not is_number(value):
            missing = value is None or (isinstance(value, Real) and not isinstance(value, bool))
            return "\N{EN DASH}" if missing else str(value)
        shown = format(value, self.format).replace("-", "\N{MINUS SIGN}")
        return shown.replace("%", "\N{NARROW NO-BREAK SPACE}%")

    def winners(self, values: Sequence[object]) -> set[str]:
        """The shown texts of the best values."""
        numbers = [value for value in values if is_number(value)]
        if self.best is None or not numbers:
            return set()
        if isinstance(self.best, str):
            return {self.text(max(numbers) if self.best == "highest" else min(numbers))}
        target = self.best
        nearest = min(abs(value - target) for value in numbers)
        return {self.text(value) for value in numbers if abs(value - target) == nearest}


@final
@dataclass(frozen=True)
class Table:
    """A table whose caption says what one sees.

    Args:
        columns: its columns; numbers stand to the right, text to the left.
        rows: one cell a column: numbers, strings or None.
        caption: what the table shows.
        heading: opens a new part of the report.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[object]]
    caption: str
    heading: str = ""

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"each row must have {len(self.columns)} cells, one a column; "
                    f"got {len(row)} in row {index}."
                )


@final
@dataclass(frozen=True)
class Figure:
    """A picture, its caption, and a description for readers who do not see it.

    Args:
        image: a matplotlib figure, the bytes of a PNG or SVG file, or its path.
        caption: what one sees and what follows from it.
        alt: what the picture shows, for screen readers.
        dark: the same picture for a dark page; without it the first stands on a white card.
        heading: opens a new part of the report.
    """

    image: Image
    caption: str
    alt: str
    dark: Image | None = None
    heading: str = ""

    def __post_init__(self) -> None:
        if not self.alt.strip():
            raise ValueError("alt must say in words what the figure shows; got an empty text.")


Section: TypeAlias = Text | Facts | Table | Figure


class Draw(Protocol):
    """Draws a picture on the axis it is given by name."""

    def __call__(self, *, ax: Axes) -> object:
        """Draw on `ax`."""


def drawn(
    draw: Draw,
    *,
    caption: str,
    alt: str,
    size: tuple[float, float] = (7.6, 4.6),
    heading: str = "",
) -> Figure:
    """A figure drawn twice, for the light and for the dark page, as SVG.

    Args:
        draw: draws on `ax`; of a function of `plots`, `functools.partial` with all but `ax`.
            Matplotlib's colours of text and ground are set while it runs, and restored after.
        caption: see `Figure`.
        alt: see `Figure`.
        size: width and height in inches.
        heading: see `Figure`.

    Returns:
        The figure, ready for `write_report`.

    Example:
        >>> figure = drawn(lambda ax: ax.plot([1, 2]), caption="A line.", alt="A rising line.")
        >>> figure.image[:5], figure.image == figure.dark
        (b'<?xml', False)
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure as Drawing

    versions = []
    for background, ink in (LIGHT, DARK):
        colours: dict[Any, str] = dict.fromkeys(_INKS, ink)
        colours |= dict.fromkeys(("figure.facecolor", "axes.facecolor"), background)
        with mpl.rc_context(colours):
            drawing = Drawing(figsize=size, layout="constrained")
            draw(ax=drawing.subplots())
            versions.append(svg(drawing))
    return Figure(versions[0], caption, alt, dark=versions[1], heading=heading)


def svg(drawing: Drawing) -> bytes:
    """The matplotlib figure as an SVG file: neither date nor random identifiers in it."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Drawing

    if not isinstance(drawing, Drawing):
        raise TypeError(
            "a figure's image must be a matplotlib figure, bytes or a Path; "
            f"got {type(drawing).__name__}. Of an axis, pass ax.figure."
        )
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "report"}):
        drawing.savefig(buffer, format="svg", dpi=200, metadata={"Date": None})
    return buffer.getvalue()
