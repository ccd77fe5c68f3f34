"""The how-to page is a script: torchrun runs it in two processes."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "distributed.md"


def test_the_page_runs_by_torchrun(tmp_path):
    script = tmp_path / "shared.py"
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    script.write_text("\n\n".join(blocks), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", str(script)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    said = sorted(re.findall(r"process \d of 2: all is as in one process", done.stdout))
    assert [line.split()[1] for line in said] == ["0", "1"], done.stderr[-3000:]
    # At its very end a process of gloo aborts now and then, without us, too (PyTorch 2.13, 2 of 20 runs).
    assert not done.returncode or "terminate called without an active" in done.stderr, done.stderr
