"""The Markdown pages: their Python blocks, headings and links."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]

FENCED = re.compile(r"^```(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    """Return the page's path from the root."""
    return page.relative_to(ROOT).as_posix()


def python_blocks(text: str) -> list[str]:
    """Return the Python blocks, each behind as many empty lines as stand above it in the page.

    A traceback then shows the line of the page.
    """
    return [
        "\n" * text.count("\n", 0, match.start(1)) + match.group(1)
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def links(text: str) -> list[str]:
    """Return where links and pictures of the page lead."""
    prose = re.sub(r"`[^`\n]*`", "", FENCED.sub("", text))
    return re.findall(r"\]\(([^)\s]+)\)", prose)


def anchors(text: str) -> set[str]:
    """Return what can follow # in a link to the page: headings, and names whose docstrings stand there."""
    prose = FENCED.sub("", text)
    found = {slug(heading) for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE)}
    return found | set(re.findall(r"^::: (\S+)$", prose, re.MULTILINE))


def slug(heading: str) -> str:
    """Return a heading's anchor, which GitHub and MkDocs make alike but for hyphens in a row."""
    words = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
    return re.sub(r"[-\s]+", "-", words)
