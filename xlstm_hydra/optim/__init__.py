"""Optax optimizers and learning rate schedules."""

from ._optimizer import Schedule as Schedule
from ._optimizer import build_optimizer as build_optimizer
from ._optimizer import decay_mask as decay_mask
from ._optimizer import hyperparameters as hyperparameters
from ._optimizer import learning_rate as learning_rate
