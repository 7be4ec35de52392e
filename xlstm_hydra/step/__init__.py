"""The compiled training step on a mesh: loss, gradients and optimizer update."""

from ._compilation_cache import CompilationStats as CompilationStats
from ._compilation_cache import compilation_cache as compilation_cache
from ._compilation_cache import compiled_folder as compiled_folder
from ._key import plan_key as plan_key
from ._program import Program as Program
from ._program import TrainState as TrainState
from ._program import build_program as build_program
from ._sharded_loss import BATCH_TYPES as BATCH_TYPES
from ._sharded_loss import Batch as Batch
from ._sharded_loss import ShardedLoss as ShardedLoss
from ._sharded_loss import abstract_params as abstract_params
from ._sharded_loss import build_sharded_loss as build_sharded_loss
from ._sharded_loss import cross_entropy as cross_entropy
from ._sharded_loss import unused_settings as unused_settings
