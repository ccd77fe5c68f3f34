"""Every family of rules, imported so that its rules are declared."""

from pushforward.rules import activations as activations
from pushforward.rules import attention as attention
from pushforward.rules import constants as constants
from pushforward.rules import convolution as convolution
from pushforward.rules import elementwise as elementwise
from pushforward.rules import fft as fft
from pushforward.rules import indexing as indexing
from pushforward.rules import linalg as linalg
from pushforward.rules import losses as losses
from pushforward.rules import matmul as matmul
from pushforward.rules import normalization as normalization
from pushforward.rules import pooling as pooling
from pushforward.rules import reductions as reductions
from pushforward.rules import views as views
