"""Threads that call at the same time: what one of them learns, forgets, or imports is nothing to the others."""

import random
import sys
import threading
import types

import pytest
import torch
import torch.func as tf
from at_once import at_once

from pushforward import jacfwd, jvp
from pushforward.tape import trust
from pushforward.transforms.record import Tape

X = torch.linspace(0.1, 1, 3, dtype=torch.float64)
V = torch.linspace(1, 2, 3, dtype=torch.float64)


class Storm(Exception):
    """Raised by a function."""


def elsewhere(work):
    """Call ``work`` in a thread of its own, and wait for it."""
    problems = []

    def run():
        try:
            work()
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not problems


def function(kind, meanwhile=()):
    """Return a function with one of two graphs, which save alike tensors: one record serves all of them."""

    def f(x):
        for work in meanwhile:
            work()
        if kind == "fails":
            raise Storm
        return (x.sin() if kind == "sin" else x.cos()) * x

    return f


def pushed(kind, meanwhile=()):
    return jvp(function(kind, meanwhile), (X,), (V,))[1]


def expected(kind):
    return tf.jvp(function(kind), (X,), (V,))[1]


def test_calls_by_heart_that_another_thread_forgets_meanwhile():
    record = trust.record_of(function("sin"))
    for _ in range(6):
        pushed("sin")
    (key,) = record.repeats

    def fail():
        with pytest.raises(Storm):
            pushed("fails")

    is_known = []
    meanwhile = [lambda: elsewhere(fail), lambda: is_known.append(key in record.repeats)]
    found = pushed("cos", meanwhile)
    assert not any(is_known)
    torch.testing.assert_close(found, expected("cos"))


def test_scripts_that_another_thread_reads_by_meanwhile(monkeypatch):
    record = trust.record_of(function("sin"))
    for _ in range(6):
        for kind in ("sin", "cos"):
            pushed(kind)
    assert len(record.scripts) == 2
    record.repeats.clear()
    record.misses = 0
    by_heart, others = Tape.by_heart, [lambda: pushed("cos")]

    def interrupted(tape):
        if others:
            elsewhere(others.pop())
        return by_heart(tape)

    monkeypatch.setattr(Tape, "by_heart", interrupted)
    pushed("sin")
    for kind in ("cos", "sin", "cos", "sin"):
        torch.testing.assert_close(pushed(kind), expected(kind))


@pytest.mark.parametrize("name", ["torch._dynamo.eval_frame", "torch.distributed.tensor"])
def test_a_module_of_torch_that_another_thread_just_imports(monkeypatch, name):
    expected = tf.jacfwd(function("sin"))(X)
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))  # as far as that has come
    for _ in range(4):
        assert torch.equal(jacfwd(function("sin"))(X), expected)


def test_threads_whose_functions_change_all_the_time():
    kinds = ("sin", "cos", "fails")
    numbers = {kind: expected(kind) for kind in kinds[:2]}
    problems = []

    def work(seed):
        choose = random.Random(seed)
        for _ in range(60):
            kind = choose.choice(kinds)
            try:
                if not torch.equal(pushed(kind), numbers[kind]):
                    problems.append(f"{kind}: a wrong number")
            except Storm:
                if kind != "fails":
                    problems.append(f"{kind}: a storm of somebody else's")
            except BaseException as problem:
                problems.append(problem)

    at_once(work, 8, interval=2e-5)
    assert not problems
