"""Derivatives over several processes, on ``torch.distributed``, which is imported only with this module."""

from pushforward.distributed.batches import vmap as vmap
from pushforward.distributed.gauss_newton import gauss_newton_operator as gauss_newton_operator
from pushforward.distributed.sharded_matrix import ShardedMatrix as ShardedMatrix
from pushforward.distributed.shared_jacobian import jacobian as jacobian
