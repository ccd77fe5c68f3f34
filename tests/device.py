"""Where the operators of PyTorch's database are tested: ``DEVICE=cuda`` in the environment names another place."""

import os

DEVICE = os.environ.get("DEVICE", "cpu")
