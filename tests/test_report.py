"""The page stands alone, escapes what it is given, and shows numbers as asked."""

import base64
import re
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure as Drawing

from bmm_multitask_learning import plots
from bmm_multitask_learning.report import (
    Column,
    Facts,
    Figure,
    Section,
    Table,
    Text,
    drawn,
    write_report,
)

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
VOID = {"meta", "img", "source"}


class Page(HTMLParser):
    """Tags, attributes and text of a page whose tags must match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.words.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def texts(self, tag: str) -> list[str]:
        return [text for name, text in self.words if name == tag]


def page_of(folder: Path, sections: list[Section], **changes: str) -> tuple[Page, str]:
    given = {"title": "Schools", "summary": "Sharing helps.", **changes}
    path = write_report(folder / "report.html", sections=sections, **given)
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    return page, html


def results(best: str | float | None = None, form: str = ".2f") -> Table:
    rows = [["pooled", 10.361], ["shared", 10.042], ["clusters", 10.0449], ["failed", np.nan]]
    return Table([Column("model"), Column("RMSE", form, "points", best)], rows, "Errors.")


def test_all_kinds_of_section_in_order(tmp_path: Path) -> None:
    sections: list[Section] = [
        Facts([("65", "schools"), ("4,059", "pupils")]),
        Text("First paragraph,\nsame.\n\nSecond.", heading="Question"),
        results(),
        Figure(PIXEL, "A point.", "one grey point"),
        Figure(PIXEL, "Another.", "one more point"),
    ]
    page, html = page_of(tmp_path, sections)
    assert page.texts("h1") == ["Schools"]
    assert page.texts("title") == ["Schools"]
    assert page.texts("dd") == ["65", "4,059"]
    assert page.texts("dt") == ["schools", "pupils"]
    assert page.texts("p") == ["Sharing helps.", "First paragraph, same.", "Second."]
    assert page.texts("h2") == ["Question"]
    assert page.texts("b") == ["Table 1.", "Figure 1.", "Figure 2."]
    assert [image["alt"] for image in page.all("img")] == ["one grey point", "one more point"]
    assert html.index("Table 1.") < html.index("Figure 1.")


def test_page_stands_alone(tmp_path: Path) -> None:
    sections: list[Section] = [drawn(lambda ax: ax.plot([1, 2]), caption="A.", alt="a line")]
    page, html = page_of(tmp_path, sections)
    addresses = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "srcset", "href")
    ]
    assert len(addresses) == 2
    assert all(str(address).startswith("data:image/svg+xml;base64,") for address in addresses)
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert page.all("script") == page.all("link") == []
    policy = page.all("meta")[3]["content"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@pytest.mark.parametrize("place", ["title", "summary", "text", "fact", "cell", "column", "alt"])
def test_everything_is_escaped(place: str, tmp_path: Path) -> None:
    evil = "<script>alert('\"&')</script>"
    given = dict.fromkeys(("title", "summary", "text", "fact", "cell", "column", "alt"), "plain")
    given[place] = evil
    sections: list[Section] = [
        Text(given["text"], heading=given["text"]),
        Facts([(given["fact"], given["fact"])]),
        Table([Column(given["column"], unit=given["column"])], [[given["cell"]]], given["cell"]),
        Figure(PIXEL, given["alt"], given["alt"]),
    ]
    page, html = page_of(tmp_path, sections, title=given["title"], summary=given["summary"])
    assert page.all("script") == []
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_headings_are_listed_and_lead_to_their_parts(tmp_path: Path) -> None:
    parts: list[Section] = [Text("x", heading=word) for word in ("One", "Two", "Three")]
    page, _ = page_of(tmp_path, parts)
    assert [link["href"] for link in page.all("a")] == ["#part-1", "#part-2", "#part-3"]
    assert [heading["id"] for heading in page.all("h2")] == ["part-1", "part-2", "part-3"]
    assert page.texts("a") == page.texts("h2") == ["One", "Two", "Three"]
    page, _ = page_of(tmp_path, parts[:2])
    assert page.all("nav") == []


@pytest.mark.parametrize(
    ("best", "bold"),
    [
        (None, []),
        ("highest", ["10.36"]),
        # Both read 10.04, so neither is better than the other.
        ("lowest", ["10.04", "10.04"]),
        (10.3, ["10.36"]),
    ],
)
def test_best_of_a_column_is_bold(
    best: str | float | None, bold: list[str], tmp_path: Path
) -> None:
    page, html = page_of(tmp_path, [results(best)])
    assert page.texts("strong") == bold
    assert ("set in bold" in html) == bool(bold)
    assert page.texts("small") == ["points"]


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (".3f", 0.12349, "0.123"),
        (".3f", np.float32(0.5), "0.500"),
        (",d", np.int64(4059), "4,059"),
        (".1f", -1.25, "\N{MINUS SIGN}1.2"),
        (".1%", 0.883, "88.3\N{NARROW NO-BREAK SPACE}%"),
        (".1f", None, "\N{EN DASH}"),
        (".1f", float("nan"), "\N{EN DASH}"),
        (".1f", "n/a", "n/a"),
        ("", True, "True"),
        ("", "shared-Gaussian", "shared-Gaussian"),
    ],
)
def test_cells_are_formatted(form: str, value: object, text: str) -> None:
    assert Column("any", form).text(value) == text


def test_numbers_stand_to_the_right(tmp_path: Path) -> None:
    columns = [Column("model"), Column("rows"), Column("note"), Column("time", ".1f", "s")]
    page, _ = page_of(tmp_path, [Table(columns, [["a", 3, "x", None], ["b", 4, 5, "-"]], "T.")])
    classes = [cell.get("class") for cell in page.all("th")[:4]]
    assert classes == [None, "number", None, "number"]


def test_table_without_rows_keeps_its_head(tmp_path: Path) -> None:
    page, _ = page_of(tmp_path, [Table([Column("model", best="lowest")], [], "None yet.")])
    assert page.texts("th") == ["model"]


def test_figures_from_matplotlib_bytes_and_files(tmp_path: Path) -> None:
    drawing = Drawing()
    drawing.subplots().plot([1, 2])
    (tmp_path / "point.png").write_bytes(PIXEL)
    sections: list[Section] = [
        Figure(drawing, "drawing", "a line"),
        Figure(tmp_path / "point.png", "file", "a point"),
        Figure(b"<svg xmlns='x'></svg>", "svg", "nothing"),
    ]
    page, _ = page_of(tmp_path, sections)
    kinds = [str(image["src"]).split(";")[0] for image in page.all("img")]
    assert kinds == ["data:image/svg+xml", "data:image/png", "data:image/svg+xml"]
    encoded = str(page.all("img")[1]["src"]).split(",")[1]
    assert base64.b64decode(encoded) == PIXEL


def test_drawn_figures_are_light_and_dark_and_leave_settings_alone(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    history = [-9.0, -4.0, -3.0, -2.9]
    figure = drawn(partial(plots.bound, history), caption="Rises.", alt="a rising curve")
    assert dict(mpl.rcParams) == before
    assert isinstance(figure.image, bytes)
    assert isinstance(figure.dark, bytes)
    assert b"#15181d" in figure.dark
    assert b"#15181d" not in figure.image
    page, _ = page_of(tmp_path, [figure])
    assert page.all("source")[0]["media"] == "screen and (prefers-color-scheme: dark)"


def test_settings_are_restored_when_drawing_fails() -> None:
    before = dict(mpl.rcParams)
    with pytest.raises(ValueError, match="history must be finite"):
        drawn(partial(plots.bound, [np.inf]), caption="Fails.", alt="nothing")
    assert dict(mpl.rcParams) == before


def test_same_report_twice_is_the_same_file(tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        draw = partial(plots.predictions, [1.0, 2.0], [1.0, 1.5], [0.0, 0.5], [2.0, 1.8])
        sections = [drawn(draw, caption="C.", alt="dots")]
        path = tmp_path / name / "deep" / "report.html"
        assert write_report(path, title="T", summary="S", sections=sections) == path
        pages.append(path.read_bytes())
    assert pages[0] == pages[1]


def test_style_serves_dark_narrow_and_printed_pages(tmp_path: Path) -> None:
    _, html = page_of(tmp_path, [Text("x")])
    for condition in ("prefers-color-scheme: dark", "max-width: 34rem", "print"):
        assert re.search(rf"@media \(?{condition}", html)
    style = html[html.index("<style>") : html.index("</style>")]
    assert style.count("{") == style.count("}")


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda _: Column("x", best="largest"), ValueError, 'best must be "highest".*"largest"'),
        (
            lambda _: Table([Column("a"), Column("b")], [[1, 2], [1]], "T."),
            ValueError,
            "each row must have 2 cells, one a column; got 1 in row 1",
        ),
        (lambda _: Figure(PIXEL, "C.", "  "), ValueError, "alt must say in words"),
        (
            lambda path: write_report(path, title="T", summary="S", sections=[]),
            ValueError,
            "path must name the file to write; got the folder",
        ),
        (
            lambda path: page_of(path, [Figure(b"GIF89a", "C.", "A.")]),
            ValueError,
            "a figure must be PNG or SVG; got content beginning b'GIF89a'",
        ),
        (
            lambda path: page_of(path, [Figure(Drawing().subplots(), "C.", "A.")]),
            TypeError,
            "must be a matplotlib figure, bytes or a Path; got Axes. Of an axis, pass ax.figure",
        ),
        (
            lambda path: page_of(path, ["plain words"]),
            TypeError,
            "a section must be a Text, Facts, Table or Figure of this module; got str",
        ),
    ],
)
def test_errors(call, error: type[Exception], match: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=match):
        call(tmp_path)
    assert list(tmp_path.iterdir()) == []
