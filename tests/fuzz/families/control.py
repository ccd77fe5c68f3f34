"""Control flow on values and on state, islands without gradients, loops, and autograd inside."""

from fuzz.templates import Builder, step


@step(2, is_cut=True)
def detached(b: Builder) -> str:
    x = b.any()
    return b.one(
        f"{x}.detach() * {b.any(lambda t: t.shape == b.env[x].shape)}",
        f"{x} - {x}.detach() + {x}.sin()",
        f"{x} * {x}.detach().abs().sum()",
        f"{x} * {x}.abs().sum().item()",
        f"{x} * float({x}.abs().sum())",
        f"{x}.data * {b.number()} + {x}",
    )


@step(2, is_cut=True)
def island(b: Builder) -> str:
    x = b.any()
    y = b.any(lambda t: t.shape == b.env[x].shape)
    return b.one(
        f"with torch.no_grad():\n    {{0}} = {x} * {y}\n{{1}} = {{0}} * {x}",
        f"with torch.no_grad():\n    {{0}} = {x}.sin()\n    with torch.enable_grad():\n        {{1}} = {{0}} + {y}.cos()",
        f"{{0}} = {x} * 1\nwith torch.no_grad():\n    {{0}}.mul_({b.number()})",
        f"{{0}} = {x} * 1\nwith torch.no_grad():\n    {{0}}.add_({y})",
        f"{{0}} = {x} * {y}\n{{0}}.detach().mul_({b.number()})",
        f"{{0}} = torch.zeros_like({x})\n{{0}}.copy_({x})\nwith torch.no_grad():\n    {{0}}.add_({b.number()})\n{{1}} = {{0}} * {{0}}",
        f"{{0}} = {x} + 0\n{{1}} = {{0}} * 2\n{{0}}.data.add_(1)",
        f"@torch.no_grad()\ndef inner(t):\n    return t * t\n{{0}} = inner({x}) * {y}",
        f"torch.set_grad_enabled(False)\n{{0}} = {x}.cos()\ntorch.set_grad_enabled(True)\n{{1}} = {{0}} * {x}",
    )


@step(2.5)
def branch(b: Builder) -> str:
    x = b.real()
    y = b.any()
    test = b.one(
        f"{x}.sum() > {b.number(-1, 1)}",
        f"bool(({x} > 0).all())",
        f"{x}.abs().max() > 0.8",
        f"{x}.sum().item() > 0",
    )
    z = b.any(lambda t: t.shape == b.env[y].shape and t.dtype == b.env[y].dtype)
    return b.one(
        f"if {test}:\n    {{0}} = {y}.sin()\nelse:\n    {{0}} = {y} * {z}",
        f"{{0}} = {y}\nif {test}:\n    {{0}} = {{0}} * {z}",
        f"{{0}} = {y} * 1\nif {test}:\n    {{0}}.mul_({b.number()})",
        f"{{0}} = {y}.clone()\nif {test}:\n    {{0}}[...] = {z}",
        f"{{0}} = {y}.detach() if {test} else {y}".replace(".detach()", ".neg()"),
    )


@step(2.5)
def asked(b: Builder) -> str:
    """Do something else as the state says."""
    y = b.any()
    z = b.any(lambda t: t.shape == b.env[y].shape and t.dtype == b.env[y].dtype)
    flag = b.one("a", "b")
    return b.one(
        f"if s0['{flag}']:\n    {{0}} = {y}.sin()\nelse:\n    {{0}} = {y}.cos()",
        f"{{0}} = {y} * 1\nif s0['{flag}']:\n    {{0}}.mul_({z})",
        f"{{0}} = {y} * s0['number']",
        f"{{0}} = {y}.clone()\nif s0['{flag}']:\n    {{0}}.zero_()",
        f"{{0}} = torch.zeros_like({y})\nfor _ in range(s0['times']):\n    {{0}} = ({{0}} + {z}).tanh()",
        f"{{0}} = {y}\nfor _ in range(s0['times']):\n    {{0}} = {{0}} * {b.number(-1, 1)}",
        f"{{0}} = {y} + {z}\nif s0['{flag}']:\n    {{0}} = torch.mul({y}, {z}, out=torch.empty_like({y}))",
        f"{{0}} = {y} ** s0['times']",
        f"s0['calls'] = s0.get('calls', 0) + 1\n{{0}} = {y} * s0['calls']",
        f"{{0}} = {y}.exp()\n{{1}} = {{0}} * {z}\nif s0['{flag}']:\n    {{0}}.add_(1)",
    )


@step(1, is_cut=True)
def asked_to_cut(b: Builder) -> str:
    y = b.any()
    flag = b.one("a", "b")
    return b.one(
        f"{{0}} = {y}.detach() if s0['{flag}'] else {y}",
        f"with torch.set_grad_enabled(s0['{flag}']):\n    {{0}} = {y}.sin()",
        f"{{0}} = {y} * 1\nif s0['{flag}']:\n    with torch.no_grad():\n        {{0}}.mul_(2)",
        f"{{0}} = {y}.sin()\nif s0['{flag}']:\n    {{0}}.detach().add_(1)",
    )


@step(1)
def asked_to_write(b: Builder) -> str:
    y = b.any(lambda t: t.dim() < 3)
    c = b.declare("c", f"{{0}} = {b.literal(b.shape(y), b.env[y].dtype)}")
    flag = b.one("a", "b")
    return b.one(
        f"{{0}} = {y} * {c}\nif s0['{flag}']:\n    {c}.add_(0.25)",
        f"if s0['{flag}']:\n    {c}.copy_({y})\n{{0}} = {y} * {c}",
        f"if s0['{flag}']:\n    {c}.data.mul_(0.5)\n{{0}} = {y} * {c}",
        f"if s0['{flag}']:\n    with torch.no_grad():\n        {c}.mul_(0.5)\n{{0}} = {y}.sin() * {c}",
    )


@step(1)
def loop(b: Builder) -> str:
    x = b.any()
    count = b.one(2, 3)
    return b.one(
        f"{{0}} = {x}\nfor i in range({count}):\n    {{0}} = {{0}} + 0.1 * {{0}}.sin()",
        f"{{0}} = {x} * 1\nfor i in range({count}):\n    {{0}}.mul_(0.9).add_({x})",
        f"{{0}} = sum([{x}.sin() * i for i in range({count})])",
        f"{{0}} = {x}\nfor i in range(9):\n    if {{0}}.abs().sum() < 1:\n        break\n    {{0}} = {{0}} * 0.4",
    )


@step(0.7)
def list_of_rows(b: Builder) -> str:
    x = b.any(lambda t: t.dim() > 0 and 0 < t.shape[0] < 5)
    return b.one(
        f"torch.stack([r * i for i, r in enumerate({x})])",
        f"sum(r.sin() for r in {x})",
        f"{{0}} = torch.zeros_like({x})\nfor i in range({b.shape(x)[0]}):\n    {{0}}[i] = {x}[i] * (i + 1)",
        f"{{0}} = {x}.clone()\nfor i in range(1, {b.shape(x)[0]}):\n    {{0}}[i] = {{0}}[i] * {{0}}[i - 1]",
    )


@step(0.7, is_cut=True)
def autograd_inside(b: Builder) -> str:
    x = b.real()
    return b.one(
        f"with torch.enable_grad():\n    t = {x}.detach().requires_grad_()\n    {{0}} = torch.autograd.grad((t ** 3).sum(), t)[0] * {x}",
        f"with torch.enable_grad():\n    t = {x} * 1\n    t = t if t.requires_grad else t.requires_grad_()\n    {{0}} = torch.autograd.grad((t ** 3).sum(), t, create_graph=True)[0]",
        f"torch.utils.checkpoint.checkpoint(lambda t: t.sin() * t, {x}, use_reentrant=False)",
    )
