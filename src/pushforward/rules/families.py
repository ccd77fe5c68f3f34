"""Every family of rules, imported so that its rules are declared."""

from pushforward.rules import activations as activations
from pushforward.rules import attention as attention
from pushforward.rules import backward_formulas as backward_formulas
from pushforward.rules import backwards as backwards
from pushforward.rules import constants as constants
from pushforward.rules import convolution as convolution
from pushforward.rules import ctc as ctc
from pushforward.rules import elementwise as elementwise
from pushforward.rules import factorizations as factorizations
from pushforward.rules import fft as fft
from pushforward.rules import householder as householder
from pushforward.rules import indexing as indexing
from pushforward.rules import least_squares as least_squares
from pushforward.rules import linalg as linalg
from pushforward.rules import losses as losses
from pushforward.rules import lu as lu
from pushforward.rules import margins as margins
from pushforward.rules import matmul as matmul
from pushforward.rules import normalization as normalization
from pushforward.rules import pooling as pooling
from pushforward.rules import reductions as reductions
from pushforward.rules import sampling as sampling
from pushforward.rules import scattering as scattering
from pushforward.rules import sparse_products as sparse_products
from pushforward.rules import special as special
from pushforward.rules import views as views
