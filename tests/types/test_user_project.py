"""A user's strict project passes mypy and pyright, and where it is wrong both say so."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).parent / "project"
TIMEOUT = 300  # seconds: the first time all of PyTorch is read


def expected_lines() -> set[int]:
    lines = (SOURCE / "user.py").read_text(encoding="utf-8").splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith("# expect: error")}


@pytest.fixture
def project(tmp_path):
    return shutil.copytree(SOURCE, tmp_path / "project")


def output_of(command, project):
    environment = os.environ | {"MYPYPATH": str(ROOT / "src")}
    done = subprocess.run(
        command,
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return done.stdout + done.stderr


def test_mypy(project):
    cache = ROOT / ".mypy_cache" / "user"
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(cache), "user.py"]
    found = output_of(command, project)
    lines = {int(n) for n in re.findall(r"^user\.py:(\d+): error:", found, re.MULTILINE)}
    others = re.findall(r"^(?!user\.py:).*error:.*$", found, re.MULTILINE)
    assert (lines, others) == (expected_lines(), []), found


def test_pyright(project):
    (project / "pyrightconfig.json").write_text(
        json.dumps(
            {
                "typeCheckingMode": "strict",
                "pythonVersion": "3.11",
                "extraPaths": [str(ROOT / "src")],
                "include": ["user.py"],
            }
        )
    )
    command = [sys.executable, "-m", "basedpyright", "--outputjson"]
    found = output_of([*command, "--pythonpath", sys.executable], project)
    diagnostics = json.loads(found)["generalDiagnostics"]
    errors = [d for d in diagnostics if d["severity"] == "error"]
    lines = {d["range"]["start"]["line"] + 1 for d in errors}
    assert lines == expected_lines(), errors
