"""Loss, gradients and update as one compiled program on a mesh."""

from ._compilation_cache import Programs as Programs
from ._compilation_cache import compilation_cache as compilation_cache
from ._key import plan_key as plan_key
from ._loss import cross_entropy as cross_entropy
from ._program import Program as Program
from ._program import build_program as build_program
from ._sharded_loss import BATCH_TYPES as BATCH_TYPES
from ._sharded_loss import Batch as Batch
from ._sharded_loss import Objective as Objective
from ._sharded_loss import abstract_params as abstract_params
from ._sharded_loss import build_objective as build_objective
from ._sharded_loss import idle_settings as idle_settings
from ._state import TrainState as TrainState
