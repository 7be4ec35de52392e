"""Loss, gradients and update as one compiled program on a mesh."""

from ._key import plan_key as plan_key
from ._loss import cross_entropy as cross_entropy
from ._objective import BATCH_TYPES as BATCH_TYPES
from ._objective import Batch as Batch
from ._objective import Objective as Objective
from ._objective import abstract_params as abstract_params
from ._objective import build_objective as build_objective
from ._objective import idle_settings as idle_settings
from ._program import Program as Program
from ._program import build_program as build_program
from ._state import TrainState as TrainState
