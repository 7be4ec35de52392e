"""The config schema: one dataclass per group. Importing it requires only the standard library."""

from typing import TYPE_CHECKING, Any

from xlstm_hydra.codec import register_class as register_class
from xlstm_hydra.problems import ConfigError as ConfigError
from xlstm_hydra.problems import Problem as Problem

from ._cell_config import CellConfig as CellConfig
from ._config_dict import OPTIONS as OPTIONS
from ._config_dict import ConfigDict as ConfigDict
from ._fields import BOOKKEEPING as BOOKKEEPING
from ._fields import KINDS as KINDS
from ._fields import LAYOUT as LAYOUT
from ._fields import NUMERICS as NUMERICS
from ._fields import PARAMETERS as PARAMETERS
from ._fields import Effect as Effect
from ._fields import affects as affects
from ._fields import effect_of as effect_of
from ._fields import effects_of as effects_of
from ._model_class import locate_class as locate_class
from ._model_class import resolve_classes as resolve_classes
from ._process import ProcessInfo as ProcessInfo
from ._process import idle_tasks as idle_tasks
from ._registry import allow_modules as allow_modules
from ._registry import register_model_class as register_model_class
from ._rules import at_least as at_least
from ._rules import below as below
from ._rules import one_of as one_of
from .checkpoint import AUTO as AUTO
from .checkpoint import CheckpointConfig as CheckpointConfig
from .data import DataConfig as DataConfig
from .data import StdlibDataConfig as StdlibDataConfig
from .data import SyntheticDataConfig as SyntheticDataConfig
from .data import TextDataConfig as TextDataConfig
from .device import DeviceConfig as DeviceConfig
from .distributed import DistributedConfig as DistributedConfig
from .launcher import LocalLauncherConfig as LocalLauncherConfig
from .launcher import SlurmLauncherConfig as SlurmLauncherConfig
from .llama import LlamaConfig as LlamaConfig
from .logger import LoggerConfig as LoggerConfig
from .mlstm import mLSTMConfig as mLSTMConfig
from .mlstm import mLSTMv1Config as mLSTMv1Config
from .model import ModelConfig as ModelConfig
from .model import ModelNode as ModelNode
from .model import SubModelConfig as SubModelConfig
from .optimizer import AdamWConfig as AdamWConfig
from .optimizer import LionConfig as LionConfig
from .optimizer import OptimizerConfig as OptimizerConfig
from .optimizer import SGDConfig as SGDConfig
from .parallel import AutoParallelConfig as AutoParallelConfig
from .parallel import ParallelConfig as ParallelConfig
from .run import RunConfig as RunConfig
from .run import options_of as options_of
from .scheduler import ConstantConfig as ConstantConfig
from .scheduler import CosineConfig as CosineConfig
from .scheduler import ExponentialConfig as ExponentialConfig
from .scheduler import LinearConfig as LinearConfig
from .scheduler import SchedulerConfig as SchedulerConfig
from .sweeper import PLUGIN_CLASSES as PLUGIN_CLASSES
from .sweeper import OnInvalid as OnInvalid
from .sweeper import SweeperConfig as SweeperConfig
from .task import EvaluateTaskConfig as EvaluateTaskConfig
from .task import GenerateTaskConfig as GenerateTaskConfig
from .task import PlanTaskConfig as PlanTaskConfig
from .task import TaskConfig as TaskConfig
from .task import TrainTaskConfig as TrainTaskConfig
from .trainer import TrainerConfig as TrainerConfig
from .xlstm import xLSTMConfig as xLSTMConfig

if TYPE_CHECKING:
    from ._reading import RecordedConfigs as RecordedConfigs
    from ._reading import read_configs as read_configs


def __getattr__(name: str) -> Any:
    """Import a name of `_reading` when it is first used. The import takes a fifth of the time of all configs, and is
    needed only to read metadata."""
    if name not in ("RecordedConfigs", "read_configs"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import _reading

    return getattr(_reading, name)
