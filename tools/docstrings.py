"""For mkdocstrings: our docstrings say ``Example:``, which its parser knows in the plural only."""

import re
from typing import Any

import griffe


class OneExample(griffe.Extension):
    """Read the section ``Example:`` as ``Examples:``."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring before it is parsed."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
