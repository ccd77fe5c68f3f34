"""Derivatives of PyTorch functions: the Jacobian by forward mode, and its family."""

from torch.func import vmap as vmap

from pushforward.compiling.compiled import compile as compile
from pushforward.errors import MissingRuleError as MissingRuleError
from pushforward.errors import PushforwardError as PushforwardError
from pushforward.errors import RandomnessError as RandomnessError
from pushforward.errors import UnsupportedError as UnsupportedError
from pushforward.linear.kinds.general import General as General
from pushforward.operators.gauss_newton_operator import (
    gauss_newton_operator as gauss_newton_operator,
)
from pushforward.operators.hessian_operator import hessian_operator as hessian_operator
from pushforward.operators.jacobian_operator import jacobian_operator as jacobian_operator
from pushforward.operators.linear_operator import LinearOperator as LinearOperator
from pushforward.rules import families as _families  # noqa: F401  (declares the rules)
from pushforward.rules.registry import elementwise as elementwise
from pushforward.rules.registry import nondifferentiable as nondifferentiable
from pushforward.rules.registry import rule as rule
from pushforward.rules.registry import with_output as with_output
from pushforward.sparse.coloring.choice import coloring as coloring
from pushforward.sparse.coloring.result import Coloring as Coloring
from pushforward.sparse.pattern import Pattern as Pattern
from pushforward.sparse.spy import spy as spy
from pushforward.tape.ruled import primitive as primitive
from pushforward.transforms.check import check_derivatives as check_derivatives
from pushforward.transforms.comparison import DerivativeError as DerivativeError
from pushforward.transforms.explain import explain as explain
from pushforward.transforms.grad import grad as grad
from pushforward.transforms.grad import grad_and_value as grad_and_value
from pushforward.transforms.hessian import hessian as hessian
from pushforward.transforms.hessian import hvp as hvp
from pushforward.transforms.jacfwd import jacfwd as jacfwd
from pushforward.transforms.jacobian import jacobian as jacobian
from pushforward.transforms.jacobian import value_and_jacobian as value_and_jacobian
from pushforward.transforms.jacrev import jacrev as jacrev
from pushforward.transforms.jvp import jvp as jvp
from pushforward.transforms.linearize import linearize as linearize
from pushforward.transforms.pattern import pattern as pattern
from pushforward.transforms.plans import clear_plans as clear_plans
from pushforward.transforms.vjp import vjp as vjp
