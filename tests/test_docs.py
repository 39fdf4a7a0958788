"""The pages of docs/: their Python blocks run, and their links to lines of code hold."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TABLES = DOCS / "benchmarks"  # parts of benchmarks.md, no pages of their own
PAGES = sorted(p for p in DOCS.rglob("*.md") if TABLES not in p.parents)
SLOW = ("how-to/long-jobs.md", "how-to/own-backbone.md", "how-to/text-encoders.md")


def name(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def blocks(page: Path) -> list[tuple[int, str]]:
    """Line number and code of each Python block."""
    text = page.read_text(encoding="utf-8")
    return [(text[: m.start(1)].count("\n"), m.group(1)) for m in BLOCK.finditer(text)]


@pytest.fixture(scope="session")
def source_pages() -> ModuleType:
    pytest.importorskip("mkdocs", reason="needs mkdocs, which makes the site")
    spec = importlib.util.spec_from_file_location("hook", DOCS / "_hooks" / "source_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def timed(page: Path):
    """A page whose blocks are many fits is for the slow tests."""
    return pytest.param(page, marks=pytest.mark.slow) if name(page) in SLOW else page


@pytest.mark.parametrize("page", [timed(p) for p in PAGES if blocks(p)], ids=name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """All blocks of a page in one namespace, in an empty folder."""
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib").use("agg")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, code in blocks(page):
        # as many empty lines in front as make a traceback name the page's own line
        exec(compile("\n" * line + code, str(page), "exec"), namespace)


@pytest.mark.slow
def test_commands_run(tmp_path, monkeypatch):
    """The commands of the page on the command line, in its order, on a table like its own."""
    testing = pytest.importorskip("typer.testing")
    from bmm_multitask_learning.cli import app

    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    lines = ["school,hours,books,score"]
    for number in range(60):
        hours, books = rng.normal(size=2).round(3)
        score = round(50 + 5 * hours + books + rng.normal(), 2)
        lines.append(f"school {number % 6},{hours},{books},{score}")
    Path("data.csv").write_text("\n".join(lines))
    Path("new.csv").write_text("\n".join(lines[:4]))
    text = (DOCS / "how-to" / "command-line.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\$ bmm-mtl (.*)$", text, re.MULTILINE)
    assert [command.split()[0] for command in commands] == [
        *("compare", "fit", "predict", "fit", "fit", "fit"),
    ]
    for command in commands:
        result = testing.CliRunner().invoke(app, shlex.split(command))
        assert result.exit_code == 0, result.output
    table = Path("predictions.csv").read_text().splitlines()
    assert len(table) == 4
    assert table[0] == "school,mean,std,lower,upper,known"


def test_a_block_that_fails_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```python\nassert 1 == 2\n```\n")
    [(line, code)] = blocks(page)
    assert line == 3
    with pytest.raises(AssertionError):
        exec(compile(code, str(page), "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_to_code_hold(page, source_pages):
    for module, text in source_pages.MARKER.findall(page.read_text(encoding="utf-8")):
        assert source_pages.line_of(module, text) > 0


def test_a_link_to_code_must_match_one_line(source_pages):
    with pytest.raises(LookupError, match="has 0 lines with 'no such line'"):
        source_pages.line_of("gaussian.py", "no such line")
    with pytest.raises(LookupError, match=r"has \d+ lines with 'Tensor'"):
        source_pages.line_of("gaussian.py", "Tensor")
    with pytest.raises(LookupError, match=r"no module missing\.py"):
        source_pages.line_of("missing.py", "x")


def test_every_equation_page_links_to_code(source_pages):
    for page in (
        *("task-clustering", "shared-gaussian", "latent-hierarchy"),
        *("sparse-bayesian", "task-covariance", "variational-weighting", "sharing"),
        "loss-weighting",
    ):
        text = (DOCS / "explanation" / f"{page}.md").read_text(encoding="utf-8")
        assert len(source_pages.MARKER.findall(text)) >= text.count("$$") // 4


def test_every_public_name_is_in_the_reference():
    import bmm_multitask_learning as package

    reference = "\n".join(p.read_text() for p in (DOCS / "reference").glob("*.md"))
    entries = set(re.findall(r"^::: [\w.]*\.(\w+)$", reference, re.MULTILINE))
    assert set(package.__all__) - entries == set()


def test_pages_are_in_the_navigation():
    navigation = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    assert [name(p) for p in PAGES if f": {name(p)}" not in navigation] == []
