"""asdex's precision ledger: never more entries than it reports, never a nonzero missed."""

import pytest
import torch
from ledger import PROBLEMS
from torch import Tensor

import pushforward as pf

pytestmark = pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state")

NOTHING = 1e-9  # what is left of sums that cancel
by_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=str)


def dense(problem, point: Tensor) -> Tensor:
    """What torch.func says of the same matrix."""
    transform = {"jacobian": torch.func.jacrev, "hessian": torch.func.hessian}[problem.matrix]
    return transform(problem.func)(point)


def sparse(problem, point: Tensor) -> Tensor:
    return getattr(pf, problem.matrix)(problem.func, output="csr")(point)


def somewhere(problem) -> Tensor:
    return 0.5 + torch.rand_like(problem.start)


@by_problem
def test_the_problem_is_the_one_that_asdex_counts(problem):
    at_start, elsewhere = dense(problem, problem.start), dense(problem, somewhere(problem))
    assert int((at_start.abs() > NOTHING).sum()) == problem.at_start
    assert int((elsewhere.abs() > NOTHING).sum()) == problem.generic


@by_problem
def test_we_report_no_more_entries_than_asdex(problem):
    count = sparse(problem, problem.start).values().numel()
    assert count == problem.ours <= problem.asdex
    if problem.matrix == "jacobian":
        assert pf.pattern(problem.func, problem.start).nnz == count


@by_problem
def test_no_nonzero_is_missed_wherever_the_pattern_comes_from(problem):
    there = somewhere(problem)
    at_start, elsewhere = sparse(problem, problem.start), sparse(problem, there)
    assert torch.equal(at_start.crow_indices(), elsewhere.crow_indices())
    assert torch.equal(at_start.col_indices(), elsewhere.col_indices())
    for found, point in [(at_start, problem.start), (elsewhere, there)]:
        expected = dense(problem, point)
        torch.testing.assert_close(found.to_dense(), expected)
        assert not ((expected.abs() > NOTHING) & (found.to_dense() == 0)).any()
