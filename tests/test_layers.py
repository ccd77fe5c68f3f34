"""The folders of src/pushforward are layers, and imports point downwards only."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "pushforward"

# A module imports from its own layer and from lower ones.
LAYERS = {
    "distributed": 7,
    "scipy": 7,
    "compiling": 6,
    "operators": 6,
    "transforms": 5,
    "planning": 4,
    "sparse": 4,
    "tape": 3,
    "rules": 2,
    "linear": 1,
    "trees": 0,
    "errors": 0,
}
BOTTOM = {"trees", "errors"}  # two files, one layer

# Only these may be imported inside a function: pushforward works without them.
OPTIONAL_DEPENDENCIES = {"matplotlib", "numba", "numpy", "scipy"}

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def modules(package: Path) -> dict[str, tuple[Path, ast.Module]]:
    """Return name -> (path, syntax tree); names are "linear.map", "linear", and "" for the root."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = (path, ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return found


def imported_names(node: ast.AST, name: str, *, is_package: bool) -> Iterator[str]:
    """Yield the absolute dotted names that an import statement of module ``name`` may load."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        parts = ["pushforward", *name.split(".")] if name else ["pushforward"]
        above = parts[: len(parts) - node.level + is_package] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)


def own_imports(
    tree: ast.Module, name: str, known: set[str], *, is_package: bool
) -> Iterator[tuple[int, str]]:
    """Yield (line, name) for each module of the package that is imported, named as above."""
    for node in ast.walk(tree):
        for target in imported_names(node, name, is_package=is_package):
            root, _, inner = target.partition(".")
            if root == "pushforward":
                # "linear.map.Scale" is a name in the module "linear.map".
                while inner and inner not in known:
                    inner = inner.rpartition(".")[0]
                yield node.lineno, inner


def imports_inside_functions(
    tree: ast.Module, name: str, *, is_package: bool
) -> Iterator[tuple[int, str]]:
    """Yield (line, name) for each import in the body of a function."""
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, FUNCTIONS)
        for node in ast.walk(function)
    }
    for node in inside:
        for target in imported_names(node, name, is_package=is_package):
            yield node.lineno, target


def violations(package: Path) -> list[str]:
    """Return one sentence for each import that breaks the rules."""
    found = modules(package)
    broken = []
    for name, (path, tree) in found.items():
        where = path.relative_to(package)
        layer = name.split(".")[0]
        if layer and layer not in LAYERS:
            broken.append(f"{where}: {layer} is not in the table of layers")
            continue
        is_package = path.name == "__init__.py"
        for line, target in own_imports(tree, name, set(found), is_package=is_package):
            lower = target.split(".")[0]
            same = lower == layer or {lower, layer} <= BOTTOM
            if layer and not same and LAYERS.get(lower, 99) >= LAYERS[layer]:
                broken.append(f"{where}:{line}: {layer} imports {target or 'pushforward'}")
        for line, target in imports_inside_functions(tree, name, is_package=is_package):
            if target.split(".")[0] not in OPTIONAL_DEPENDENCIES:
                broken.append(f"{where}:{line}: {target} is imported inside a function")
    return broken


def import_order(package: Path) -> list[str]:
    """Return the modules, each after those that it imports; raise CycleError if that fails."""
    found = modules(package)
    return list(
        graphlib.TopologicalSorter(
            {
                name: {
                    target
                    for _, target in own_imports(
                        tree, name, set(found), is_package=path.name == "__init__.py"
                    )
                    if target not in {"", name}
                }
                for name, (path, tree) in found.items()
            }
        ).static_order()
    )


def plant(package: Path, where: str, source: str) -> None:
    """Make a package with one empty module a layer, and ``source`` in the module ``where``."""
    for layer in LAYERS.keys() - BOTTOM:
        (package / layer).mkdir()
        (package / layer / "__init__.py").touch()
        (package / layer / "thing.py").touch()
    for name in ("__init__", *BOTTOM):
        (package / f"{name}.py").touch()
    (package / where).parent.mkdir(exist_ok=True)
    (package / where).write_text(source, encoding="utf-8")


def test_imports_point_downwards():
    assert violations(PACKAGE) == []


def test_no_import_cycle():
    import_order(PACKAGE)


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("linear/map.py", "from pushforward.rules.thing import x"),
        ("linear/map.py", "from pushforward.rules import thing"),
        ("linear/map.py", "from pushforward import rules"),
        ("linear/map.py", "import pushforward.rules.thing"),
        ("linear/map.py", "from ..rules import thing"),
        ("linear/__init__.py", "from ..rules import thing"),
        ("linear/kinds/scale.py", "from ...rules.thing import x"),
        ("linear/map.py", "if TYPE_CHECKING:\n    from pushforward.rules.thing import x"),
        ("rules/views.py", "from pushforward.tape.thing import x"),
        ("tape/run.py", "from pushforward.planning.thing import x"),
        ("tape/run.py", "from pushforward.transforms.thing import x"),
        ("errors.py", "from pushforward.linear.thing import x"),
        ("transforms/jvp.py", "from pushforward import jacfwd"),
        ("transforms/jvp.py", "import pushforward"),
        ("extras/thing.py", ""),
        ("linear/map.py", "def f():\n    from pushforward.errors import message"),
        ("linear/map.py", "class A:\n    def f(self):\n        import math"),
        ("transforms/jvp.py", "def f():\n    from . import thing"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, where: str, source: str):
    plant(tmp_path, where, source)
    assert [sentence.split(":")[0] for sentence in violations(tmp_path)] == [where]


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("transforms/jvp.py", "from pushforward.linear.thing import x"),
        ("transforms/jvp.py", "from pushforward.planning import thing\nimport pushforward.tape"),
        ("planning/costs.py", "from pushforward.tape.thing import x"),
        ("rules/views.py", "from pushforward.rules.thing import x\nfrom . import thing"),
        ("linear/map.py", "from pushforward import errors, trees\nfrom ..errors import message"),
        ("trees.py", "from pushforward.errors import message"),
        ("__init__.py", "from pushforward.transforms.thing import x as x"),
        ("transforms/thing.py", "def f():\n    import scipy.sparse"),
    ],
)
def test_an_import_that_points_downwards_is_not_reported(tmp_path: Path, where: str, source: str):
    plant(tmp_path, where, source)
    assert violations(tmp_path) == []


def test_a_planted_cycle_is_found(tmp_path: Path):
    plant(tmp_path, "linear/map.py", "from pushforward.linear.thing import x")
    (tmp_path / "linear" / "thing.py").write_text("from pushforward.linear import map")
    with pytest.raises(graphlib.CycleError, match=r"linear\.map"):
        import_order(tmp_path)
