"""Importing the library changes nothing of PyTorch's, and is quick."""

import os
import subprocess
import sys

SNAPSHOT = """
import sys
import torch, torch.func, torch.nn, torch.autograd.forward_ad, torch.utils.hooks, torch.overrides
import torch.nn.functional, torch.utils._python_dispatch, torch.utils.checkpoint, torch.fx.experimental.proxy_tensor

def owners():
    found = {}
    for name, module in list(sys.modules.items()):
        if name == "torch" or name.startswith("torch."):
            found[name] = module
            for key, value in list(vars(module).items()):
                if isinstance(value, type) and value.__module__.startswith("torch"):
                    found[f"{name}.{key}"] = value
    return found

before = {name: (owner, dict(vars(owner))) for name, owner in owners().items()}
OURS
changed = []
for name, (owner, names) in before.items():
    now = dict(vars(owner))
    for key in names.keys() | now.keys():
        if key in names and now.get(key) is not names[key]:
            changed.append(f"{name}.{key}")
print(sorted(changed))
"""
USED = """
import pushforward as pf
x = torch.rand(3)
class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x
    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]
def f(x):
    y = Square.apply(x).clone()
    y[0] = x.sum()
    return torch.nn.functional.layer_norm(y.mul_(2), (3,))
for _ in range(3):
    pf.jacfwd(f)(x), pf.jacrev(f)(x), pf.hessian(lambda x: f(x).prod())(x), pf.jvp(f, (x,), (x,))
    pf.vjp(f, x)[1](x), pf.linearize(f, x)[1](x), pf.vmap(pf.jacrev(torch.sin))(x[None])
"""


def output_of(code: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", code]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout.strip()


def test_import_replaces_no_name_of_pytorchs():
    assert output_of(SNAPSHOT.replace("OURS", "import pushforward")) == "[]"


def test_use_replaces_no_name_of_pytorchs():
    """Beside what PyTorch itself sets when it is used for the first time, without us."""
    ours = set(eval(output_of(SNAPSHOT.replace("OURS", USED))))
    theirs = USED.replace("import pushforward as pf", "import torch.func as pf")
    theirs = theirs.replace("Square.apply(x)", "x.square()").replace("y[0] = x.sum()", "")
    assert not ours - set(eval(output_of(SNAPSHOT.replace("OURS", theirs)))), ours


def test_import_is_quick():
    """0.15 s of one core beside PyTorch's own second; a collection of garbage that PyTorch left is not counted."""
    code = """
import gc, time, torch
gc.disable()
start = time.process_time()
import pushforward
print(time.process_time() - start)
"""
    output_of("import pushforward")  # compiles what is not compiled
    assert min(float(output_of(code)) for _ in range(3)) < 0.15
