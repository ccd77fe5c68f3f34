"""What of PyTorch's state a call must leave in its thread as it found it."""

import sys

import torch
from torch.autograd import forward_ad
from torch.overrides import _len_torch_function_stack
from torch.utils._python_dispatch import _len_torch_dispatch_stack


def thread_state() -> dict[str, object]:
    """Return everything of PyTorch's that a transform could leave changed, but for the generator."""
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "included dispatch keys": torch._C._dispatch_tls_local_include_set().raw_repr(),
        "excluded dispatch keys": torch._C._dispatch_tls_local_exclude_set().raw_repr(),
        "function modes": _len_torch_function_stack(),
        "dispatch modes": _len_torch_dispatch_stack(),
        "function overrides": torch._C._is_torch_function_enabled(),
        "all function overrides": torch._C._is_torch_function_all_disabled(),
        "functorch interpreter": torch._C._functorch.peek_interpreter_stack() is None,
        "forward mode": torch._C._is_fwd_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "autocast cache": torch.is_autocast_cache_enabled(),
        "anomaly mode": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "backward threads": torch._C._is_multithreading_enabled(),
        "view replay": torch._C._is_view_replay_enabled(),
        "threads": torch.get_num_threads(),
        "saving hooks": torch._C._autograd._saved_tensors_hooks_is_enabled(),
        "hooks on what is saved": torch._C._autograd._top_saved_tensors_default_hooks(True),
    }


def process_state() -> dict[str, object]:
    """Return what belongs to the process: other threads' calls change it while they go on."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    return {
        "dual level": forward_ad._current_level,
        "stance of the compiler": "default" if compiler is None else compiler._stance.stance,
    }
