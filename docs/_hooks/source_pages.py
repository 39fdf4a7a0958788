"""A page of source for every module, and links from equations to lines of code.

`{{ priors/task_clustering.py :: def complexity }}` on a page becomes a link to the line of that
module that contains the text after the colons. The build fails unless exactly one line does.
"""

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PACKAGE = Path(__file__).parents[2] / "bmm_multitask_learning"
MARKER = re.compile(r"\{\{ ([\w/]+\.py) :: (.+?) \}\}")
HEAD = "---\nsearch:\n  exclude: true\nhide: [toc]\n---\n"


def line_of(module: str, text: str) -> int:
    """Number of the one line of a module that contains `text`, from 1.

    Args:
        module: path inside the package, such as "priors/task_clustering.py".
        text: part of the line.

    Raises:
        LookupError: if there is no such module, or not exactly one such line.
    """
    path = PACKAGE / module
    if not path.is_file():
        raise LookupError(f"no module {module} in the package.")
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [number for number, line in enumerate(lines, 1) if text in line]
    if len(found) != 1:
        raise LookupError(
            f"{module} has {len(found)} lines with {text!r} (lines {found}); one is needed."
        )
    return found[0]


def source_uri(module: str) -> str:
    """Where the page of a module's source lies in the site's sources."""
    return "source/" + module.removesuffix(".py") + ".md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each module and an index of them."""
    rows = []
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda p: (p.parent, p.name)):
        module = path.relative_to(PACKAGE).as_posix()
        text = path.read_text(encoding="utf-8")
        summary = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
        page = f'{HEAD}# {module}\n\n``````python linenums="1"\n{text}``````\n'
        files.append(File.generated(config, source_uri(module), content=page))
        target = source_uri(module).removeprefix("source/")
        rows.append(f"| [`{module}`]({target}) | {summary} |")
    index = f"{HEAD}# Source\n\nModules of the package, and what each is for.\n\n"
    content = index + "| module | |\n|---|---|\n" + "\n".join(rows) + "\n"
    files.append(File.generated(config, "source/index.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn every marker of a page into a link."""
    folder = posixpath.dirname(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        module, text = match.groups()
        try:
            number = line_of(module, text)
        except LookupError as error:
            raise PluginError(f"{page.file.src_uri}: {error}") from error
        target = posixpath.relpath(source_uri(module), folder or ".")
        return f"[{module}:{number}]({target}#__span-0-{number}){{ .code-line }}"

    return markdown if folder.startswith("source") else MARKER.sub(link, markdown)
