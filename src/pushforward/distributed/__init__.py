"""Derivatives over several processes, on ``torch.distributed``, which is imported only with this module."""

from pushforward.distributed.gauss_newton import gauss_newton_operator as gauss_newton_operator
from pushforward.distributed.jacobian import jacobian as jacobian
from pushforward.distributed.sharded_matrix import ShardedMatrix as ShardedMatrix
from pushforward.distributed.vmap import vmap as vmap
