"""Put MathJax into the site, from the installed package that carries it: no network is needed."""

from importlib.util import find_spec
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

BUNDLE = "tex-svg-full.js"  # one file with its fonts in it: nothing else is ever loaded


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add MathJax's bundle to the files of the site."""
    package = find_spec("mathjax")
    if package is None or package.origin is None:
        raise PluginError(
            "MathJax is missing: pip install django-static-mathjax, which carries its files."
        )
    bundle = Path(package.origin).parent / "static" / "mathjax" / "es5" / BUNDLE
    files.append(File.generated(config, f"assets/mathjax/{BUNDLE}", abs_src_path=str(bundle)))
    return files
