"""SciPy's solvers for functions of PyTorch: derivatives come along, arrays go in and out."""

from pushforward.scipy.boundary_problem import BoundaryProblem as BoundaryProblem
from pushforward.scipy.curve import Curve as Curve
from pushforward.scipy.integration import solve_bvp as solve_bvp
from pushforward.scipy.integration import solve_ivp as solve_ivp
from pushforward.scipy.optimization import NonlinearConstraint as NonlinearConstraint
from pushforward.scipy.optimization import curve_fit as curve_fit
from pushforward.scipy.optimization import least_squares as least_squares
from pushforward.scipy.optimization import minimize as minimize
from pushforward.scipy.optimization import root as root
from pushforward.scipy.rates import Rates as Rates
from pushforward.scipy.scalar_function import ScalarFunction as ScalarFunction
from pushforward.scipy.vector_function import VectorFunction as VectorFunction
