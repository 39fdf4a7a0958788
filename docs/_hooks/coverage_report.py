"""Show the coverage report in the site where the tests have written one."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPORT = Path(__file__).parents[2] / "htmlcov"
MARKER = "<!-- coverage report -->"
FRAME = (
    '<iframe class="report" src="htmlcov/index.html" title="Coverage, module by module"></iframe>'
)
MISSING = '!!! note "Not in this build"\n\n    `htmlcov/` was not there when this site was built.'


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the report."""
    for path in sorted(REPORT.glob("*")):
        if path.suffix in {".html", ".css", ".js", ".png"}:
            files.append(File.generated(config, f"htmlcov/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the report, or a word about its absence, in the place of its marker."""
    return markdown.replace(MARKER, FRAME if (REPORT / "index.html").is_file() else MISSING)
