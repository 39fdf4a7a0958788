"""Docstrings say `Example:`; the parser of the reference knows the section as `Examples:`."""

from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Let every `Example:` section be shown as code."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename the section before the docstring is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
