"""Groups of 2 and of 4 processes: each is started once, and runs the checks of the modules beside this one.

Starting one costs the import of PyTorch, which is why checks share them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
CHECKS = sorted(path.stem for path in HERE.glob("checks_*.py"))
TIMEOUT = 480  # seconds, of a whole group


def run_group(
    size: int, modules: list[str], file: Path, folder: Path = HERE
) -> tuple[list[int], list[str]]:
    """Run the checks of modules in a folder in a group of processes; return exit codes and outputs."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(SOURCE), str(folder)]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), str(rank), str(size), str(file), *modules],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(size)
    ]
    outputs = []
    try:
        for process in processes:
            try:
                outputs.append(process.communicate(timeout=TIMEOUT)[0])
            except subprocess.TimeoutExpired:
                process.kill()
                outputs.append(process.communicate()[0] + f"\nkilled after {TIMEOUT} s")
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


@pytest.mark.parametrize("size", [2, 4])
def test_checks_pass_in_every_process(size, tmp_path):
    codes, outputs = run_group(size, CHECKS, tmp_path / "meeting")
    assert codes == [0] * size, "\n".join(output[-4000:] for output in outputs)
    ran = {line.split()[0] for line in outputs[0].splitlines() if ".check_" in line}
    assert {name.split(".")[0] for name in ran} == set(CHECKS)


def test_a_check_that_fails_in_one_process_is_told_and_stops_all(tmp_path):
    (tmp_path / "checks_failing.py").write_text(
        "from torch import distributed\n"
        "def check_fails(mesh):\n"
        "    assert mesh.get_rank() == 0, 'deliberately'\n"
        "    distributed.barrier()\n"
    )
    codes, outputs = run_group(2, ["checks_failing"], tmp_path / "meeting", tmp_path)
    assert codes == [1, 1]
    assert "deliberately" in outputs[1]
