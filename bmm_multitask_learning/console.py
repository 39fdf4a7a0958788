"""What the command line says: tables, and advice in place of tracebacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from .engines import NonFiniteBoundError
from .report import Table

OUT = Console()
ERR = Console(stderr=True)


@contextmanager
def advice() -> Iterator[None]:
    """What a user can put right ends with its message and exit code 2, without a traceback."""
    try:
        yield
    except (ValueError, OSError, ImportError, MemoryError, NonFiniteBoundError) as error:
        ERR.print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(2) from error


def print_table(table: Table) -> None:
    """A report's table, turned so that it fits a terminal: a line a measure, the best in green."""
    grid = Grid(
        header_style="bold",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    grid.add_column("", no_wrap=True)
    for row in table.rows:
        words = str(row[0]).split()
        cells = [column.text(value) for column, value in zip(table.columns, row, strict=True)]
        width = max(map(len, [*words, *cells[1:]]))  # the name wraps between words
        grid.add_column(escape(cells[0]), justify="right", vertical="bottom", width=width)
    for index, column in enumerate(table.columns[1:], start=1):
        values = [row[index] for row in table.rows]
        best = column.winners(values)
        texts = [column.text(value) for value in values]
        unit = f"[dim], {escape(column.unit)}[/]" if column.unit else ""
        grid.add_row(
            escape(column.name) + unit,
            *(f"[bold green]{escape(text)}[/]" if text in best else text for text in texts),
        )
    OUT.print(grid)
    OUT.print(f"\n[dim]{escape(table.caption)}[/]")
