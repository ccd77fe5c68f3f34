"""What we expect of the private names of PyTorch in `tape.private_torch`: a new PyTorch breaks here first."""

import ast
import inspect
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pushforward.tape import (
    private_compiler,
    private_distributed,
    private_functorch,
    private_generator,
    private_inductor,
    private_shortcuts,
)
from pushforward.tape import private_torch as private


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def leaf(*shape):
    return torch.rand(shape).requires_grad_()


# ---- Modes ----


def test_set_grad_enabled_sets_grad_mode():
    private.set_grad_enabled(False)
    try:
        assert not torch.is_grad_enabled()
    finally:
        private.set_grad_enabled(True)
    assert torch.is_grad_enabled()


def test_modes_are_counted():
    assert (private.num_function_modes(), private.num_dispatch_modes()) == (0, 0)
    with Functions(), Functions(), Operators():
        assert (private.num_function_modes(), private.num_dispatch_modes()) == (2, 1)


def test_guards_compare_descriptions_and_hold_nothing():
    given = [torch.rand(2, 3), torch.rand(4, dtype=torch.float64), leaf()]
    held = weakref.ref(given[0])
    check = private_compiler.alike(given)
    del given
    assert held() is None
    first, second, third = torch.rand(2, 3), torch.rand(4, dtype=torch.float64), leaf()
    assert check(first, second, third) is True
    with torch.inference_mode():
        inference = torch.rand(2, 3)
    for other in (
        torch.rand(3, 2), torch.rand(3, 2).t(), torch.rand(6), first.double(), leaf(2, 3), None, inference,
        nn.Parameter(first, requires_grad=False), torch._neg_view(first), torch.rand(2, 3, device="meta"),
    ):  # fmt: skip
        assert check(other, second, third) is False
    assert check(first, second, third.detach()) is False
    check = private_compiler.alike([first], has_strides=False)
    assert check(torch.rand(3, 2).t())
    assert not check(torch.rand(2, 2))


def test_operator_modes_see_operators_and_import_no_compiler():
    code = (
        "import sys, torch\n"
        "from pushforward.tape.private_torch import OperatorMode\n"
        "class Seen(OperatorMode):\n"
        "    def __torch_dispatch__(self, func, types, args=(), kwargs=None):\n"
        "        print(func)\n"
        "        return func(*args, **(kwargs or {}))\n"
        "with Seen(): torch.ones(2).sin()\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["aten.ones.default", "aten.sin.default", "False"]
    assert issubclass(private.OperatorMode, TorchDispatchMode)


def test_without_modes_tensors_pass_by_them():
    with Operators():
        with private.without_modes():
            assert private.num_dispatch_modes() == 0
        assert private.num_dispatch_modes() == 1
    with private.without_modes():
        assert private.num_dispatch_modes() == 0


def test_what_an_overload_calls_is_seen_by_modes_and_autograd_as_the_overload_is():
    seen = []

    class Seeing(Operators):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return super().__torch_dispatch__(func, types, args, kwargs)

    op, x = torch.ops.aten.tanh_backward.default, leaf(2)
    call = private.without_frame(op)
    with Seeing():
        call(x, x)
    assert seen == [op]
    assert type(call(x, x).grad_fn) is type(op(x, x).grad_fn)
    assert torch.equal(torch.vmap(call)(x, x), op(x, x))


def test_modes_are_pushed_and_popped_without_a_context():
    function, operator = Functions(), Operators()
    private.push_function_mode(function)
    private.push_dispatch_mode(operator)
    assert private.function_mode_at(0) is function
    assert (private.num_function_modes(), private.num_dispatch_modes()) == (1, 1)
    torch.ones(2).sin()
    assert private.pop_dispatch_mode() is operator
    assert private.pop_function_mode() is function
    assert (private.num_function_modes(), private.num_dispatch_modes()) == (0, 0)


def test_inference_mode_is_left_as_often_as_one_likes():
    with torch.inference_mode():
        mode = private.InferenceMode(False)
        mode.__enter__()
        assert not torch.is_inference_mode_enabled()
        for _ in range(2):
            mode.__exit__(None, None, None)
            assert torch.is_inference_mode_enabled()


def test_bare_tensors_pass_by_autograd_modes_and_transforms():
    seen = []

    class Seeing(Operators):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    weight = leaf(2)

    def f(x):
        with Seeing(), private.bare():
            y = weight * torch.rand(2)
            assert not y.requires_grad
            assert not private_functorch.is_wrapped(y)
        return x.sum()

    f(torch.ones(2))
    torch.func.grad(f)(torch.ones(2))
    torch.func.vmap(f)(torch.ones(2, 2))
    assert not seen
    assert (private.num_function_modes(), private.num_dispatch_modes()) == (0, 0)


def test_tensors_may_pass_by_transforms_alone():
    weight = leaf(2)

    def f(x):
        with private.bare(below_autograd=False):
            assert (weight * torch.rand(2)).requires_grad
        return x.sum()

    torch.func.grad(f)(torch.ones(2))


@pytest.mark.parametrize("num_images", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_which_convolutions_write_out_windows_is_told(dtype, num_images):
    """In single precision and for more than one image oneDNN makes them."""
    x, weight = (torch.rand(num_images, 2, 9, 9, dtype=dtype), torch.rand(4, 2, 3, 3, dtype=dtype))
    options = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    is_written = private.writes_out_windows(x.to("meta"), weight.to("meta"), *options)
    with torch.autograd.profiler.profile() as seen:
        torch.convolution(x, weight, None, *options)
    assert is_written is any("slow_conv" in event.name for event in seen.function_events)
    assert is_written is not (dtype is torch.float32 and num_images == 2)


def test_autocast_is_seen():
    assert not private.is_autocasting()
    with torch.autocast("cpu", torch.bfloat16):
        assert private.is_autocasting()


# ---- Nodes ----


def test_zeros_without_memory_are_known():
    made = torch._efficientzerotensor(2)
    assert private.is_zero_without_memory(made)
    assert not private.is_zero_without_memory(made.clone())
    assert not private.is_zero_without_memory(torch.zeros(2))


def test_a_negated_view_is_the_one_that_the_imaginary_part_of_a_conjugate_is():
    x = torch.arange(1, 3)
    view = private.negated_view(x)
    assert view.is_neg()
    assert view.tolist() == [-1, -2]
    view.fill_(3)
    assert x.tolist() == [-3, -3]


def test_nodes_tell_what_they_saved_and_where_they_come_from():
    x, y = leaf(2), leaf(2)
    node = (x * y).sin().grad_fn
    (product, number), *rest = node.next_functions
    assert not rest
    assert number == 0
    assert torch.equal(node._saved_self, x * y)
    assert product._saved_other is y
    (metadata,) = private.output_metadata(node)
    assert (tuple(metadata.shape), metadata.dtype, metadata.device.type) == (
        (2,),
        torch.float32,
        "cpu",
    )


def test_nodes_are_numbered_in_the_order_in_which_a_thread_makes_them():
    x = leaf(2)
    number = private.next_sequence_number()
    first, second = x.sin(), x.cos()
    assert private.sequence_number(first.grad_fn) == number
    assert private.sequence_number(second.grad_fn) == number + 1
    assert private.next_sequence_number() == number + 2


def test_nodes_note_the_frames_that_make_them_in_anomaly_mode():
    x = leaf(2)
    assert private.frames_noted(x.sin().grad_fn) == []
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        node = x.cos().grad_fn
    last = private.frames_noted(node)[-1]
    assert f'File "{__file__}", line ' in last
    assert last.splitlines()[1].strip() == "node = x.cos().grad_fn"


def test_a_node_can_be_called_alone():
    x = leaf(2)
    y = x.sin()
    node = (y * y.exp()).grad_fn
    cotangents = node(torch.ones(2))
    torch.testing.assert_close(cotangents[0], y.exp())
    torch.testing.assert_close(cotangents[1], y)


class Doubled(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def test_python_nodes_tell_their_function():
    assert isinstance(Doubled.apply(leaf(2)).grad_fn, private.PythonNode)
    seen = []

    def f(x):
        y = Doubled.apply(x)
        seen.append(private.function_of(y.grad_fn))
        return y.sum()

    f(leaf(2))
    torch.func.grad(f)(torch.ones(2))
    assert seen == [Doubled, Doubled]


def test_module_hooks_leave_a_python_node():
    layer = nn.Identity()
    layer.register_full_backward_hook(lambda module, g_in, g_out: None)
    found = layer(leaf(2) * 1).grad_fn
    assert private.function_of(found) is private.BackwardHookFunction


def test_decompositions_have_the_operators_signature():
    assert callable(private.decomposition("native_layer_norm", "default"))


# ---- Memory, views and writes ----


@pytest.mark.parametrize("write", [Tensor.zero_, lambda t: t.numpy().fill(0)])
@pytest.mark.parametrize("of", [0, 1])
def test_a_write_to_either_of_two_copies_does_not_reach_the_other(write, of):
    numbers = torch.arange(1, 4)
    pair = numbers, private.copied_when_written(numbers)
    write(pair[of])
    assert pair[of].tolist() == [0, 0, 0]
    assert pair[1 - of].tolist() == [1, 2, 3]


def test_versions_in_the_error_about_overwritten_tensors():
    x = leaf(2)
    y = x.exp()
    z = y.sin()
    y.detach().mul_(2)
    with pytest.raises(RuntimeError) as caught:
        z.grad_fn._saved_self  # noqa: B018
    assert private.expected_version(caught.value) == 0
    assert torch.equal(private.raw_saved(z.grad_fn, "self"), y)
    assert private.expected_version(RuntimeError("another")) is None
    joined = torch.stack([x, x])
    assert joined.grad_fn.name() == "StackBackward0"


def test_what_a_function_saved_can_be_had_as_it_is_now():
    class Kept(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            result = x * 2
            ctx.save_for_backward(x, result)
            return result

    x = leaf(2) * 1
    y = Kept.apply(x)
    x.mul_(3)
    node = y.grad_fn
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        _ = node.saved_tensors
    first, result = private.saved_as_now(node, [0, 0])
    assert torch.equal(first, x)
    assert first.requires_grad
    assert torch.equal(result, y)
    assert result.grad_fn is node
    assert x._version == 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        _ = node.saved_tensors


def test_a_version_can_be_kept_over_a_write():
    x = torch.zeros(3)
    with private.keeping_version(x):
        x.add_(1)
    assert x._version == 0
    x.add_(1)
    assert x._version == 1


def test_views_of_several_outputs_are_known_and_refused():
    y = leaf(2, 2) * 1
    view, other = y.unbind(0)
    assert private.is_one_of_several(view)
    assert not private.is_one_of_several(y[0])
    assert private.is_plain_view(y[0])
    assert not private.is_plain_view(view)
    with torch.no_grad():
        assert not private.is_plain_view(y[0])
    with pytest.raises(RuntimeError) as caught:
        other.mul_(2)
    assert private.is_refusal(caught.value)
    assert not private.is_refusal(RuntimeError("another"))


def test_inference_tensors_cannot_be_saved():
    with torch.inference_mode():
        weight = torch.ones(2)
    with pytest.raises(RuntimeError) as caught:
        weight * leaf(2)
    assert private.is_about_inference(caught.value)
    assert not private.is_about_inference(RuntimeError("another"))


def test_what_only_nodes_and_views_hold_is_told_from_what_python_holds() -> None:
    x = torch.ones(2, requires_grad=True) * 1
    saved, viewed, kept = x.sin(), x * 2, x * 3
    references = [weakref.ref(t) for t in (saved, viewed, kept)]
    alive = [saved.sin(), viewed[:1], [kept]]
    for reference in references:
        tensor = reference()
        assert private.is_held(tensor)
        del tensor
    del saved, viewed, kept
    found = []
    for reference in references:
        tensor = reference()
        found.append(private.is_held(tensor))
    assert found == [False, False, True]
    del alive


def test_owners_of_tensors_and_storages_are_counted():
    x = torch.ones(2)
    assert private.num_owners(x) == (1, 1)
    assert private.num_holders(x) == 1
    view = x[:1]
    assert private.num_owners(x)[1] == 2
    assert private.shares_storage(x, view)
    assert not private.shares_storage(x, torch.ones(2))
    y = leaf(2) * 1
    alone = private.num_owners(y)[0]
    z = y.sin()  # saves it
    assert private.num_owners(y)[0] == alone + 1
    del z


def test_wrappers_without_elements():
    class Hollow(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            raise NotImplementedError

    made = private.make_wrapper(Hollow, (2, 3), dtype=torch.float64, device=torch.device("cpu"))
    assert (type(made), made.shape, made.dtype) == (Hollow, (2, 3), torch.float64)


def test_modes_can_be_pushed_and_popped():
    before = private.num_function_modes()
    private.push_function_mode(Functions())
    assert private.num_function_modes() == before + 1
    private.pop_function_mode()
    assert private.num_function_modes() == before


def test_function_modes_see_nothing_of_what_is_unseen():
    seen = []

    class Seeing(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    x = torch.ones(2)
    assert private.unseen(lambda: x.sin()).shape == (2,)
    with Seeing():
        assert torch.equal(private.unseen(lambda: x.cos()), x.cos())
    assert seen.count(torch.Tensor.cos) == 1


def test_backward_passes_are_known_and_can_be_run_inside_transforms():
    def f(x):
        z, seen = x.sin(), []
        z.register_hook(lambda g: seen.append((private.in_backward_pass(), g)))
        private.run_backward(z, torch.ones(2))
        assert seen[0][0]
        assert not private.in_backward_pass()
        return x.sum()

    f(leaf(2))
    assert torch.equal(torch.func.grad(f)(torch.ones(2)), torch.ones(2))


def test_hooks_on_what_is_saved_are_known():
    assert not private.has_saving_hooks()
    with torch.autograd.graph.save_on_cpu():
        assert private.has_saving_hooks()


def test_hooks_on_what_is_saved_are_taken_away_and_put_back():
    outer, inner = (lambda t: t, lambda t: t), (lambda t: t + 1, lambda t: t - 1)
    top = torch._C._autograd._top_saved_tensors_default_hooks
    hooked = torch.autograd.graph.saved_tensors_hooks
    with hooked(*outer), hooked(*inner):
        with private.NoSavingHooks():
            assert not private.has_saving_hooks()
            torch._C._autograd._push_saved_tensors_default_hooks(*outer)  # and left there
        assert top(False) == inner
        torch._C._autograd._pop_saved_tensors_default_hooks()
        assert top(False) == outer
        torch._C._autograd._push_saved_tensors_default_hooks(*inner)
    assert not private.has_saving_hooks()


def test_a_node_called_in_a_pass_for_certain_inputs_gives_nothing_for_others():
    y, x = leaf(2).sin(), leaf(2)
    z, found = x.clone(), []
    z.register_hook(lambda g: found.append(y.grad_fn(torch.ones(2))))
    torch.autograd.grad(z.sum(), x, retain_graph=True)
    assert found.pop() is None
    z.sum().backward()
    assert found.pop() is not None


# ---- Jagged tensors ----


def test_autograd_can_be_passed_by_and_be_had_back_below():
    x, keys = leaf(2), private.dispatch_keys()
    with private.below_autograd():
        assert not x.sin().requires_grad
        with private.with_dispatch_keys(keys):
            assert x.sin().requires_grad
        assert not x.sin().requires_grad


def test_jagged_tensors_are_taken_apart_and_made():
    values, offsets = torch.rand(5, 2), torch.tensor([0, 2, 5])
    nested = torch.nested.nested_tensor_from_jagged(values, offsets)
    assert type(nested) is private.JaggedTensor
    parts = private.jagged_parts(nested)
    assert torch.equal(parts["values"], values)
    assert torch.equal(private.JaggedTensor(**parts).values(), values)


def test_what_jagged_tensors_do_on_values_is_told():
    nested = torch.nested.nested_tensor_from_jagged(torch.rand(5, 2), torch.tensor([0, 2, 5]))
    aten = torch.ops.aten
    assert private.is_done_on_values(aten.sin.default, nested)
    assert not private.is_done_on_values(aten.softmax.int, nested, -1)
    assert private.jagged_function(torch.flatten, nested, 2, 2) is nested
    with pytest.raises(NotImplementedError):
        private.jagged_function(torch.sin, nested)


def test_branches_by_cond_leave_a_node_of_their_own():
    assert issubclass(private.CondFunction, torch.autograd.Function)
    assert private.CondFunction.__module__ == "torch._higher_order_ops.cond"


def test_reentrant_checkpoints_leave_a_node_of_their_own():
    y = torch.utils.checkpoint.checkpoint(torch.sin, leaf(2), use_reentrant=True)
    assert private.function_of(y.grad_fn) is private.CheckpointFunction


# ---- The compiler ----


def test_compiled_functions_can_be_run_eagerly():
    torch._dynamo.reset()
    assert private.has_dynamo()
    calls = []

    def f(x):
        return x * 2

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    compiled = torch.compile(f, backend=backend)
    stance = sys.modules["torch._dynamo.eval_frame"]._stance
    eagerly = private.compiled_functions_run_eagerly
    for recording in (1, 2):
        eagerly.begin(recording)
    assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 2.0))
    for recording in (1, 1, 2):
        eagerly.end(recording)
    assert not calls
    assert sys.modules["torch._dynamo.eval_frame"]._stance is stance
    compiled(torch.ones(2))
    assert calls


def test_the_compiler_leaves_marked_functions_alone():
    torch._dynamo.reset()
    compiling = []

    def inner():
        compiling.append(torch.compiler.is_dynamo_compiling())

    @private.left_alone_by_dynamo
    def marked(x):
        inner()
        return x * 2

    compiled = torch.compile(lambda x: marked(x + 1) * 3, backend="eager")
    assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 12.0))
    assert compiling == [False]


def test_hooks_of_all_modules_are_where_they_are_registered():
    registered = torch.nn.modules.module
    kinds = (
        registered.register_module_forward_hook,
        registered.register_module_forward_pre_hook,
        registered.register_module_full_backward_hook,
        registered.register_module_full_backward_pre_hook,
    )
    for found, register in zip(private.hooks_of_all_modules(), kinds, strict=True):
        handle = register(print)
        assert [*found.values()] == [print]
        handle.remove()
        assert not found


# ---- All of them ----


@pytest.mark.parametrize(
    "module",
    [
        private,
        private_compiler,
        private_distributed,
        private_functorch,
        private_generator,
        private_inductor,
        private_shortcuts,
    ],
)
def test_every_private_name_is_used_in_the_test_of_its_module(module):
    tree = ast.parse(inspect.getsource(module))
    names = {
        name
        for statement in tree.body
        for name in names_defined_by(statement)
        if not name.startswith("_") and name not in ("Node", "FUNCTORCH_KEYS")
    }
    test = Path(__file__).with_name(f"test_{module.__name__.split('.')[-1]}.py")
    used = {n.attr for n in ast.walk(ast.parse(test.read_text())) if isinstance(n, ast.Attribute)}
    assert names
    assert names <= used, names - used


def names_defined_by(statement):
    match statement:
        case ast.Assign(targets=[ast.Name(name)]) | ast.AnnAssign(target=ast.Name(name)):
            return [name]
        case ast.FunctionDef(name=name):
            return [name]
    return []
