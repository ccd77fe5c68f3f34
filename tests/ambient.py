"""What of PyTorch's state a call must leave in its thread as it found it."""

import torch
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
        "autocast": torch.is_autocast_enabled("cpu"),
        "anomaly mode": torch.is_anomaly_enabled(),
        "threads": torch.get_num_threads(),
        "grad hooks": torch._C._autograd._saved_tensors_hooks_is_enabled(),
    }
