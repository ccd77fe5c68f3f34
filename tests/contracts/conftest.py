"""Every behaviour here is checked twice: of ours, and of ``torch.func``, whose contract it states.

So a test that misreads PyTorch fails by itself. What differs on purpose is in ``test_differences.py``.
"""

import pytest
import torch

import pushforward


@pytest.fixture(params=[pushforward, torch.func], ids=["ours", "torch"])
def api(request):
    """The module whose functions are tested."""
    return request.param


@pytest.fixture(params=["jacfwd", "jacrev", "jacobian", "torch.jacfwd", "torch.jacrev"])
def jac(request):
    """Every function that makes Jacobians."""
    name = request.param.split(".")
    return getattr(torch.func if len(name) == 2 else pushforward, name[-1])


# What PyTorch says of its own: vmap of operators without a batching rule, and the graphs of its linearize.
NOT_OURS = (
    "ignore:There is a performance drop:UserWarning",
    "ignore:Attempted to insert a get_attr Node:UserWarning",
)


# What torch.func itself gets wrong, by the versions that do: gradients are zeros in inference mode.
FAULTS_OF_TORCH = {
    "test_inference_mode_around_changes_nothing[torch-inference mode]": ("2.11",),
    "test_inference_mode_around_changes_nothing[torch-inference mode and no_grad]": ("2.11",),
    "test_inference_mode_inside_makes_a_constant[torch]": ("2.11",),
}


def pytest_itemcollected(item: pytest.Item) -> None:
    if "contracts" in item.path.parts:
        for warning in NOT_OURS:
            item.add_marker(pytest.mark.filterwarnings(warning))
        if torch.__version__.startswith(FAULTS_OF_TORCH.get(item.name, ("none",))):
            item.add_marker(pytest.mark.xfail(reason="torch.func is wrong in this version"))
