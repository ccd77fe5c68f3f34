"""The Python blocks of README.md and of every page run, in order, in one namespace a page; links lead somewhere."""

import re

import pytest
import yaml
from pages import DOCS, PAGES, README, ROOT, anchors, links, name_of, python_blocks, slug

import pushforward
import pushforward.scipy

WITH_EXAMPLES = [page for page in PAGES if python_blocks(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name_of)
def test_every_example_of_a_page_runs(page):
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in python_blocks(page.read_text(encoding="utf-8")):
        exec(compile(block, str(page), "exec"), namespace)


def test_readme_tutorials_and_how_to_pages_have_examples():
    assert len(python_blocks(README.read_text(encoding="utf-8"))) >= 8
    expected = [*(DOCS / "how-to").glob("*.md"), *(DOCS / "tutorials").glob("*.md")]
    assert expected
    assert set(expected) <= set(WITH_EXAMPLES)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_within_the_repository_lead_somewhere(page):
    broken = []
    for link in links(page.read_text(encoding="utf-8")):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if (
            not target.is_relative_to(
                ROOT if page == README else DOCS
            )  # what the site does not have
            or not target.exists()
            or (anchor and anchor not in anchors(target.read_text(encoding="utf-8")))
        ):
            broken.append(link)
    assert not broken


def test_the_navigation_lists_every_page_once():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = sorted(_leaves(config["nav"]))
    assert listed == sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))


def _leaves(nav):
    """Return the pages of a part of the navigation."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [leaf for part in parts for leaf in _leaves(part)]


def test_the_reference_has_every_public_name():
    documented = set()
    for page in (DOCS / "reference").glob("*.md"):
        documented |= anchors(page.read_text(encoding="utf-8"))
    public = [name for name in vars(pushforward) if not name.startswith("_")]
    functions = [name for name in public if name == "vmap" or callable(getattr(pushforward, name))]
    missing = [name for name in functions if f"pushforward.{name}" not in documented]
    assert missing == ["vmap"]  # PyTorch's own
    solvers = [n for n, found in vars(pushforward.scipy).items() if callable(found)]
    assert len(solvers) == 12
    assert {f"pushforward.scipy.{name}" for name in solvers} <= documented


def test_what_the_reference_names_is_no_module():
    """Of a function and a module of one name, the site shows the module."""
    named = [
        name
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert "pushforward.distributed.jacobian" in named
    modules = [
        name
        for name in named
        if (ROOT / "src" / name.replace(".", "/")).with_suffix(".py").exists()
    ]
    assert modules == []


def test_a_block_keeps_the_line_numbers_of_its_page():
    assert python_blocks("a\n\n```python\nx = 1\n```\nb\n```sh\nls\n```\n") == ["\n\n\nx = 1\n"]


def test_links_and_anchors_are_found():
    text = (
        "# A `b`, c.d\n[x](y.md#z) `[no](no)` ![p](q.png)\n```python\n# no\n[n](o)\n```\n::: a.b\n"
    )
    assert links(text) == ["y.md#z", "q.png"]
    assert anchors(text) == {"a-b-cd", "a.b"}
    assert (
        slug("Where we differ from torch.func, and why") == "where-we-differ-from-torchfunc-and-why"
    )
