"""Run each project's own tests as they are and with the import swapped: ``python -m switching``."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path
from urllib.parse import urljoin
from xml.etree import ElementTree

import torch

from switching.projects import PROJECTS, Project
from switching.swap import swap_imports

INDEX = "https://pypi.org/simple/"


def main() -> int:
    """Print a table and the tests that end differently; 1 if one passes only as it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="only the projects whose name starts so")
    parser.add_argument("--folder", type=Path, default=Path("build/switching"))
    options = parser.parse_args()
    print(
        f"PyTorch {torch.__version__}, 1 thread; processor time of a run of the tests, with its imports"
    )
    lost = 0
    for project in PROJECTS:
        if not options.names or project.name.startswith(tuple(options.names)):
            lost += _compare(project, options.folder.resolve())
    return min(lost, 1)


def _compare(project: Project, folder: Path) -> int:
    archive = _fetched(project, folder)
    plain, plain_time = _tested(project, _extracted(archive, folder / "plain", project))
    tree = _extracted(archive, folder / "swapped", project)
    lines = swap_imports(tree, tree / project.source)
    swapped, swapped_time = _tested(project, tree)
    passed, kept = (sum(state == "passed" for state in run.values()) for run in (plain, swapped))
    print(
        f"{project.name}: {lines} imports swapped; torch.func {passed} of {len(plain)} passed, {plain_time:.1f} s; "
        f"pushforward {kept} of {len(swapped)}, {swapped_time:.1f} s = {swapped_time / plain_time:.2f}",
        flush=True,
    )
    differing = [test for test in {**plain, **swapped} if plain.get(test) != swapped.get(test)]
    for test in differing:
        print(f"  {test}: {plain.get(test)} -> {swapped.get(test)}")
    return sum(plain.get(test) == "passed" for test in differing)


def _fetched(project: Project, folder: Path) -> bytes:
    path = folder / f"{project.name}.tar.gz"
    if not path.exists():
        page = urljoin(INDEX, f"{project.package}/")
        request = urllib.request.Request(
            page, headers={"Accept": "application/vnd.pypi.simple.v1+json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            files = {file["filename"]: file["url"] for file in json.load(reply)["files"]}
        with urllib.request.urlopen(urljoin(page, files[path.name]), timeout=60) as reply:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(reply.read())
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != project.sha256:
        raise SystemExit(
            f"{path}: not the file that projects.py names (SHA-256 differs); delete it"
        )
    return content


def _extracted(archive: bytes, folder: Path, project: Project) -> Path:
    with tarfile.open(fileobj=io.BytesIO(archive)) as file:
        file.extractall(folder, filter="data")
    tree = folder / project.name
    settings = (tree / name for name in ("pyproject.toml", "setup.cfg", "tox.ini"))
    if not any(path.exists() and "pytest" in path.read_text() for path in settings):
        (tree / "pytest.ini").write_text("[pytest]\n")  # or pytest takes those of the folders above
    return tree


def _tested(project: Project, tree: Path) -> tuple[dict[str, str], float]:
    report = tree / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", f"--junitxml={report}"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tree / project.source), str(tree)]),
        "OMP_NUM_THREADS": "1",
    }
    before = _seconds()
    done = subprocess.run(
        [*command, *project.tests], cwd=tree, env=environment, capture_output=True, text=True
    )
    seconds = _seconds() - before
    if done.returncode not in (0, 1):  # 1: some tests failed
        raise SystemExit(
            f"{project.name}: pytest ended with {done.returncode}\n{done.stdout[-3000:]}"
        )
    return _states(ElementTree.parse(report).getroot()), seconds


def _seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _states(report: ElementTree.Element) -> dict[str, str]:
    states = {}
    for case in report.iter("testcase"):
        found = next(
            (child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed"
        )
        states[f"{case.get('classname')}::{case.get('name')}"] = found
    return states


if __name__ == "__main__":
    sys.exit(main())
