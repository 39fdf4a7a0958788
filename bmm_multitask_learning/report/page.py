"""From sections to one HTML page."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from bmm_multitask_learning.report.sections import (
    Column,
    Facts,
    Figure,
    Image,
    Section,
    Table,
    Text,
    is_number,
    svg,
)
from bmm_multitask_learning.report.style import STYLE

# More columns than this are set smaller, so that they fit a page.
_MANY_COLUMNS = 7
_PER_CENT = re.compile(r"(?<=\d) %")


def write_report(
    path: str | Path, *, title: str, summary: str, sections: Sequence[Section]
) -> Path:
    """Write a report as one HTML file that needs nothing else.

    Args:
        path: the file to write; missing folders are made, an existing file is replaced.
        title: the report's title.
        summary: what the reader should know who reads no further; blank lines part paragraphs.
        sections: its parts in order; a part with a heading opens a chapter.

    Returns:
        The path.

    Raises:
        ValueError: path is a folder, or a figure is neither PNG nor SVG.
        TypeError: a section is none of the four kinds.

    Example:
        >>> import tempfile
        >>> from bmm_multitask_learning.report import Column
        >>> table = Table([Column("model"), Column("RMSE", ".2f", "points", best="lowest")],
        ...               [["pooled", 10.36], ["shared", 10.04]], "Error on held-out pupils.")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = write_report(f"{folder}/report.html", title="Schools",
        ...                         summary="Sharing helps.", sections=[table])
        ...     '<strong>10.04</strong>' in page.read_text(encoding="utf-8")
        True
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"path must name the file to write; got the folder {path}.")
    for section in sections:
        if not isinstance(section, Text | Facts | Table | Figure):
            raise TypeError(
                "a section must be a Text, Facts, Table or Figure of this module; "
                f"got {type(section).__name__}."
            )
    page = _page(title, summary, sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _page(title: str, summary: str, sections: Sequence[Section]) -> str:
    body = "\n".join(_body(sections))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header>
<h1>{escape(title)}</h1>
<div class="summary">{_paragraphs(summary)}</div>
</header>
{_contents(sections)}{body}
</main>
</body>
</html>
"""


def _contents(sections: Sequence[Section]) -> str:
    headings = [section.heading for section in sections if section.heading]
    if len(headings) < 3:
        return ""
    items = "".join(
        f'<li><a href="#part-{index}">{escape(heading)}</a></li>'
        for index, heading in enumerate(headings, start=1)
    )
    return f'<nav aria-label="Contents"><ol>{items}</ol></nav>\n'


def _body(sections: Sequence[Section]) -> Iterator[str]:
    parts = tables = figures = 0
    for section in sections:
        if section.heading:
            parts += 1
            yield f'<h2 id="part-{parts}">{escape(section.heading)}</h2>'
        if isinstance(section, Text):
            yield _paragraphs(section.body)
        elif isinstance(section, Facts):
            yield _facts(section)
        elif isinstance(section, Table):
            tables += 1
            yield _table(section, tables)
        else:
            figures += 1
            yield _figure(section, figures)


def _paragraphs(text: str) -> str:
    blocks = [" ".join(block.split()) for block in text.strip().split("\n\n")]
    return "\n".join(f"<p>{_prose(block)}</p>" for block in blocks if block)


def _prose(text: str) -> str:
    """Escaped text in which a figure and its per cent sign stay on one line."""
    return _PER_CENT.sub("\N{NARROW NO-BREAK SPACE}%", escape(text))


def _facts(facts: Facts) -> str:
    items = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(figure)}</dd></div>"
        for figure, label in facts.items
    )
    return f'<dl class="facts">{items}</dl>'


def _table(table: Table, number: int) -> str:
    cells = [[row[place] for row in table.rows] for place in range(len(table.columns))]
    columns = [
        _column(column, values) for column, values in zip(table.columns, cells, strict=True)
    ]
    head = "".join(column[0] for column in columns)
    rows = "\n".join(
        f'<tr><th scope="row"{first}</th>{"".join(f"<td{cell}</td>" for cell in others)}</tr>'
        for first, *others in zip(*(column[1:] for column in columns), strict=True)
    )
    marked = any(
        column.winners(values) for column, values in zip(table.columns, cells, strict=True)
    )
    wide = ' class="wide"' if len(table.columns) > _MANY_COLUMNS else ""
    note = " The best of a column is set in bold." if marked else ""
    return f"""<figure class="table">
<figcaption><b>Table {number}.</b> {_prose(table.caption)}{note}</figcaption>
<div class="scroll" tabindex="0"><table{wide}>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
</figure>"""


def _column(column: Column, values: Sequence[object]) -> list[str]:
    # The head, then each cell from its attributes to its content: the table names the tag.
    texts = any(isinstance(value, str) for value in values)
    right = bool(column.format) or (any(map(is_number, values)) and not texts)
    side = ' class="number"' if right else ""
    unit = f"<small>{escape(column.unit)}</small>" if column.unit else ""
    winners = column.winners(values)
    parts = [f'<th scope="col"{side}>{escape(column.name)}{unit}</th>']
    for value in values:
        text = column.text(value)
        best = is_number(value) and text in winners
        parts.append(f"{side}><strong>{text}</strong>" if best else f"{side}>{escape(text)}")
    return parts


def _figure(figure: Figure, number: int) -> str:
    picture = f'<img src="{_data_address(figure.image)}" alt="{escape(figure.alt)}">'
    look = ' class="card"'
    if figure.dark is not None:
        dark = _data_address(figure.dark)
        source = f'<source media="screen and (prefers-color-scheme: dark)" srcset="{dark}">'
        picture, look = f"<picture>{source}{picture}</picture>", ""
    return f"""<figure{look}>
{picture}
<figcaption><b>Figure {number}.</b> {_prose(figure.caption)}</figcaption>
</figure>"""


def _data_address(image: Image) -> str:
    if isinstance(image, Path):
        content = image.read_bytes()
    elif isinstance(image, bytes):
        content = image
    else:
        content = svg(image)
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        kind = "image/png"
    elif b"<svg" in content[:1000]:
        kind = "image/svg+xml"
    else:
        raise ValueError(f"a figure must be PNG or SVG; got content beginning {content[:12]!r}.")
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
