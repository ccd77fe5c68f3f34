"""The Python blocks of README.md and of the how-to pages run, in order, in one namespace a page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
HOW_TO = sorted((ROOT / "docs" / "how-to").glob("*.md"))


def python_blocks(text: str) -> list[str]:
    """Return the Python blocks, each behind as many empty lines as stand above it in the page.

    A traceback then shows the line of the page.
    """
    return [
        "\n" * text.count("\n", 0, match.start(1)) + match.group(1)
        for match in re.finditer(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    ]


def test_every_example_in_the_readme_runs():
    blocks = python_blocks(README.read_text(encoding="utf-8"))
    assert len(blocks) >= 8
    namespace: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_every_example_of_a_how_to_page_runs(page):
    blocks = python_blocks(page.read_text(encoding="utf-8"))
    assert blocks
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)


def test_a_block_keeps_the_line_numbers_of_its_page():
    assert python_blocks("a\n\n```python\nx = 1\n```\nb\n```sh\nls\n```\n") == ["\n\n\nx = 1\n"]
