"""One process of a group: runs checks, one after the other, and stops at the first that fails.

``python worker.py RANK SIZE FILE MODULE...``: every function of the modules whose name starts with ``check_`` is called
with the process's own mesh over all processes; ``FILE`` is where the processes meet.
"""

import datetime
import importlib
import os
import sys
import time
import traceback
import warnings

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

TIMEOUT = datetime.timedelta(seconds=180)  # of one collective


def main(rank: int, size: int, file: str, modules: list[str]) -> int:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated")  # of torch.func's jvp
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=size, timeout=TIMEOUT
    )
    mesh = init_device_mesh("cpu", (size,))
    for module in modules:
        for name, check in vars(importlib.import_module(module)).items():
            if not name.startswith("check_"):
                continue
            started = time.perf_counter()
            torch.manual_seed(0)
            try:
                check(mesh)
            except BaseException:
                print(f"{module}.{name}, process {rank} of {size}:\n{traceback.format_exc()}")
                return 1  # the others lose their connection, and stop, too
            print(f"{module}.{name} {time.perf_counter() - started:.2f} s", flush=True)
    distributed.barrier()
    distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    code = main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
    sys.stdout.flush()
    os._exit(code)  # a thread of gloo aborts now and then while Python ends (PyTorch 2.13)
