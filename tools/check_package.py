"""Install a built wheel into a fresh environment, and use it there. ``make package`` runs this.

PyTorch and the other dependencies are those of the environment that runs this script: they are gigabytes.
"""

from __future__ import annotations

import subprocess
import sysconfig
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Run in the fresh environment, away from the repository.
USE = """
import importlib.metadata, importlib.resources, sys
import torch
import pushforward as pf
from pushforward import distributed

assert pf.__file__.startswith(sys.prefix), pf.__file__
assert importlib.metadata.version("pushforward") == VERSION
assert importlib.resources.files("pushforward").joinpath("py.typed").is_file()
x = torch.linspace(0, 1, 5, dtype=torch.float64)
for transform in (pf.jacfwd, pf.jacrev, pf.jacobian):
    assert torch.allclose(transform(torch.sin)(x), torch.diag(x.cos()))
assert pf.jacobian(lambda x: x.roll(1) * x, output="csr")(x).values().numel() == 10
assert torch.allclose(pf.hessian(lambda x: x.pow(3).sum())(x), torch.diag(6 * x))
print("pushforward", VERSION, "works in", sys.prefix)
"""


def main() -> None:
    """Check the wheel and the source distribution in dist/."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    (wheel,) = (ROOT / "dist").glob(f"pushforward-{version}-*.whl")
    (source,) = (ROOT / "dist").glob(f"pushforward-{version}.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    _expect(names, ["pushforward/py.typed", f"pushforward-{version}.dist-info/licenses/LICENSE"])
    strangers = {name.split("/")[0] for name in names} - {
        "pushforward",
        f"pushforward-{version}.dist-info",
    }
    if strangers:
        raise SystemExit(f"{wheel.name} has {sorted(strangers)}, expected the package alone.")
    with tarfile.open(source) as archive:
        inner = [name.split("/", 1)[-1] for name in archive.getnames()]
    _expect(inner, ["LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile", "tests/test_layers.py"])
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        _run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel])
        own = _run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
        (Path(own) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
        print(
            _run([python, "-W", "ignore", "-c", USE.replace("VERSION", repr(version))], folder),
            end="",
        )


def _expect(names: list[str], expected: list[str]) -> None:
    missing = [name for name in expected if name not in names]
    if missing:
        raise SystemExit(f"{missing} are not in the package. See [tool.hatch] in pyproject.toml.")


def _run(command: list[str | Path], folder: str | None = None) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
