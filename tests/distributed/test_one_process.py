"""What needs no other process: the import, and what is said where no group was started."""

import subprocess
import sys

import pytest
import torch

from pushforward import distributed as pfd


def test_pushforward_imports_nothing_distributed():
    code = "import sys, torch, pushforward; before = 'torch.distributed.tensor' in sys.modules; print(before)"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_a_mesh_the_way_to_one_is_told():
    with pytest.raises(
        TypeError, match=r"distributed\.jacobian: mesh: got .*init_process_group\(\)"
    ):
        pfd.jacobian(torch.sin, mesh=None, share="rows")
