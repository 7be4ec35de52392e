"""The config of a run: all groups, and the rules between them."""

from __future__ import annotations

import itertools
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from typing import Any

from xlstm_hydra.problems import ConfigError, Problem, divisors, either

from ._config_dict import OPTIONS, ConfigDict, config_dataclass
from .checkpoint import CheckpointConfig
from .data import ByteDataConfig, DataConfig, StdlibDataConfig, SyntheticDataConfig
from .device import DeviceConfig
from .distributed import DistributedConfig
from .logger import LoggerConfig
from .model import ModelConfig, SubModelConfig
from .optimizer import AdamWConfig, OptimizerConfig
from .parallel import ParallelConfig
from .scheduler import ConstantConfig, SchedulerConfig
from .task import PlanTaskConfig, TaskConfig, TrainTaskConfig
from .trainer import TrainerConfig

BYTES = 256
"""Number of token ids in byte-level text."""


@config_dataclass
class RunConfig(ConfigDict):
    """The complete config of a run, built from a composed Hydra config by `load`."""

    model: ModelConfig
    """The model, its config and its layout over devices."""

    task: TaskConfig = field(default_factory=TrainTaskConfig)
    """The task: train, evaluate, generate or plan."""

    data: DataConfig = field(default_factory=StdlibDataConfig)
    """The source of tokens."""

    optimizer: OptimizerConfig = field(default_factory=AdamWConfig)
    """The optimizer, with gradient clipping and weight decay."""

    scheduler: SchedulerConfig = field(default_factory=ConstantConfig)
    """The learning-rate schedule."""

    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """The training loop: steps, batches and validation."""

    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving of checkpoints, and the checkpoint that the run starts from."""

    logger: LoggerConfig = field(default_factory=LoggerConfig)
    """Progress on the terminal, and metrics in the run folder."""

    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """The processes of the run, and the order of their devices."""

    device: DeviceConfig | None = None
    """Memory and speed of the devices. null: the figures of the devices present, if these are recognized. For plans,
    see `task.device`."""

    @property
    def parallel(self) -> ParallelConfig:
        """The layout over devices, which is stored in the model config."""
        return self.model.parallel

    def groups(self) -> dict[str, ConfigDict]:
        """Return the config of every group by name, including `parallel`. Groups that are null are omitted."""
        groups = {name: getattr(self, name) for name in ("parallel", *self.__dataclass_fields__)}
        return {name: config for name, config in groups.items() if config is not None}

    @property
    def schedule_steps(self) -> int:
        """Length of the learning-rate schedule in steps."""
        return self.trainer.max_steps if self.scheduler.decay_steps is None else self.scheduler.decay_steps

    def rules(self) -> Iterator[Problem]:
        """Check the rules between groups. Rules that depend on the number of devices are in `device_rules`."""
        for part in self.rule_parts():
            yield from part

    def rule_parts(self, environ: Mapping[str, str] | None = None) -> Iterator[Iterator[Problem]]:
        """Yield `rules` in parts that can be checked separately. If `environ` is given, include `launch_rules`."""
        yield self._model_rules()
        yield self._task_rules()
        yield self._layout_rules()
        yield self.scheduler.length_rules(self.trainer.max_steps)
        yield self._checkpoint_rules()
        yield self._distributed_rules()
        if (platform := self._known_platform()) is not None:
            yield self.platform_rules(platform)
        if environ is not None:
            yield self.launch_rules(environ)
        if (number := self.known_devices()) is not None:
            yield self.device_rules(number)
        elif environ is None or not self._is_counted_at_launch():
            yield self._known_size_rules()

    def known_devices(self) -> int | None:
        """Return the number of planned or simulated devices, or None if the config does not determine it."""
        if isinstance(self.task, PlanTaskConfig):
            per_host = None if self.device is None else self.device.devices_per_host
            factors = [per_host if self.task.num_devices is None else self.task.num_devices]
        else:
            factors = [self.trainer.simulated_devices, self.distributed.known_processes]
        known = [factor for factor in factors if factor is not None and factor > 0]
        return math.prod(known) if len(known) == len(factors) else None

    def fitting_batch(self) -> int:
        """Return the default batch size of a plan: the smallest multiple of what the layout requires that is at least
        the default of `trainer.batch_size`. Without a given batch size, any number of devices can therefore be
        planned."""
        default, unit = TrainerConfig().batch_size, self._batch_unit()
        return -(-default // unit) * unit

    def _batch_unit(self) -> int:
        """Return the number that the batch size must be a multiple of, as far as the mesh axis sizes are known. If the
        layout is not chosen yet, assume that all devices not used for tensor parallelism or pipelines are
        data-parallel."""
        if self.parallel.is_open():
            own = [max(self.parallel.pipeline_axis_size, 1), max(self.parallel.model_axis_size, 1)]
            return self.trainer.batch_unit(max((self.known_devices() or 1) // math.prod(own), 1), 1, own[0])
        try:
            sizes = list(self.parallel.axis_sizes(self.known_devices() or 0).values())
        except ConfigError:
            sizes = list(self.parallel.sizes().values())
        data, fsdp, pipeline, _ = (max(size, 1) for size in sizes)
        return self.trainer.batch_unit(data, fsdp, pipeline)

    def _is_counted_at_launch(self) -> bool:
        """True if the number of devices is only known when the run is launched, so that `launch_rules` checks the
        layout."""
        return self.distributed.name == "auto" and (self.trainer.simulated_devices or 0) > 0

    def _known_platform(self) -> str | None:
        if isinstance(self.task, PlanTaskConfig):
            return None if self.device is None else self.device.platform
        return None if self.trainer.simulated_devices is None else "cpu"

    def launch_rules(self, environ: Mapping[str, str]) -> Iterator[Problem]:
        """Check the rules that depend on the number of launched processes, which is not known for a saved run."""
        if self.distributed.name != "auto":
            return
        try:
            process = self.distributed.process_info(environ)
        except ConfigError as error:
            yield from (problem.at("distributed") for problem in error.problems)
            if self._is_counted_at_launch():
                yield from self._known_size_rules()
            return
        if isinstance(self.task, PlanTaskConfig):
            yield from (problem.at("task") for problem in self.task.launch_rules(process))
        if self._is_counted_at_launch() and self.known_devices() is None:
            processes = process.num_processes if process else 1
            yield from self.device_rules((self.trainer.simulated_devices or 0) * processes)

    def device_rules(self, num_devices: int) -> Iterator[Problem]:
        """Check the rules that depend on the number of devices."""
        if any(self.parallel.size_rules()):  # already reported, and no size can be inferred
            yield from self._known_size_rules()
            return
        try:
            sizes = self.parallel.axis_sizes(num_devices)
        except ConfigError as error:
            for problem in error.problems:
                yield replace(problem, fix=f"{problem.fix}{self._number_hint(num_devices)}").at("parallel")
            yield from self._known_size_rules()
            return
        own, known = self.parallel.sizes(), [size if size > 0 else None for size in sizes.values()]
        inferred = {f"parallel.{key}" for key, size in own.items() if size == -1}
        for problem in self._size_rules(*known):
            follows = tuple(f"parallel.{key}" for key in own) if inferred & {*problem.keys} else ()
            yield replace(problem, also=follows)

    def platform_rules(self, platform: str) -> Iterator[Problem]:
        """Check the rules that depend on the platform of the devices: cpu, gpu or tpu."""
        ids = self.distributed.local_device_ids
        if ids is not None and platform != "gpu" and self.trainer.simulated_devices is None:
            rule = f"selects GPUs, but the platform of the devices present is {platform}"
            yield Problem({"distributed.local_device_ids": ids}, rule, "Set distributed.local_device_ids to null.")
        if self.device is not None:
            yield from (problem.at("device") for problem in self.device.platform_rules(platform))
        if isinstance(self.model.model_config, SubModelConfig) and self.task.reads_data():
            yield from (problem.at("model") for problem in self.model.model_config.platform_rules(platform))

    def _number_hint(self, num_devices: int) -> str:
        """Return a fix that changes the number of devices to one that the layout can use."""
        simulated, needed = self.trainer.simulated_devices, self.parallel.known_size()
        if isinstance(self.task, PlanTaskConfig):
            return f" Or set {{/task.num_devices}} to {either(self.parallel.usable_near(num_devices))}."
        if simulated is not None:
            count = num_devices // simulated
            hint = f" Each of the {count} processes has {{/trainer.simulated_devices}}={simulated}."
            return hint if count > 1 else ""
        return f" To try the layout on simulated devices, set {{/trainer.simulated_devices}}={needed}."

    def _known_size_rules(self) -> Iterator[Problem]:
        yield from self._size_rules(*(size if size > 0 else None for size in self.parallel.sizes().values()))

    def _size_rules(
        self, data: int | None, fsdp: int | None, pipeline: int | None, tensor: int | None
    ) -> Iterator[Problem]:
        """Check the rules between the mesh axis sizes and the other groups. A size is None if it is not known yet."""
        if self.task.reads_data():
            yield from self.trainer.batch_rules(data or 1, fsdp or 1, pipeline)
        if pipeline is not None:
            yield from self.trainer.pipeline_rules(pipeline)
        parallel = self.parallel
        if fsdp == 1 and parallel.fsdp_modules:
            yield from parallel.unused_axis_rules("fsdp_axis_size", "fsdp_gather_dtype", "fsdp_grad_scatter_dtype")
        if tensor == 1:
            yield from parallel.unused_axis_rules("model_axis_size", "tp_async_dense")
        if isinstance(self.model.model_config, SubModelConfig):
            rules = (
                self.model.model_config.layout_rules(tensor or 1),
                self.model.model_config.pipeline_rules(pipeline or 1),
            )
            yield from (problem.at("model") for problem in itertools.chain(*rules))

    def _model_rules(self) -> Iterator[Problem]:
        config, model_class = self.model.model_config, self.model.model_class
        if not isinstance(model_class, str | type):
            yield from (problem.at("model") for problem in self.model.rules())
            return
        if not isinstance(config, SubModelConfig):
            text = f"its config must be a subclass of xlstm_hydra.configs.SubModelConfig, not {type(config).__name__}"
            yield Problem({"model.model_class": self.model.class_path()}, text, "Set model.config_class.")
            return
        yield from (problem.at("model") for problem in config.unused_rules())
        for key in ("vocab_size", "context_length"):
            if not isinstance(config.get(key), int):
                text = f"its config {type(config).__name__} needs a field {key}, which determines the shape of the data"
                yield Problem({"model.model_class": self.model.class_path()}, text)
        if config.get("weight_decay_on_embedding") and self.optimizer.weight_decay == 0:
            given = {"model.weight_decay_on_embedding": True, "optimizer.weight_decay": 0}
            rule, fix = (
                "model.weight_decay_on_embedding has no effect without weight decay",
                "Set optimizer.weight_decay above 0.",
            )
            yield Problem(given, rule, fix, unused={"model.weight_decay_on_embedding": False})

    def _task_rules(self) -> Iterator[Problem]:
        """Check the task against the model and, if the task reads data, the model against the data."""
        config = self.model.model_config
        if not isinstance(config, SubModelConfig):
            return
        yield from (problem.at("task") for problem in self.task.model_rules(config))
        if self.task.reads_data():
            yield from self._data_rules(config.get("vocab_size"), config.get("context_length"))

    def _data_rules(self, vocab: Any, context: Any) -> Iterator[Problem]:
        data = self.data
        has_context = isinstance(context, int) and context > 0
        if isinstance(data, SyntheticDataConfig) and has_context and data.motif_length >= context:
            given = {"data.motif_length": data.motif_length, "model.context_length": context}
            yield Problem(given, "a sequence must be longer than the motif it repeats", "Lower data.motif_length.")
        if isinstance(data, ByteDataConfig) and isinstance(vocab, int) and 0 < vocab < BYTES:
            given = {"model.vocab_size": vocab, "data.name": data.name}
            yield Problem(
                given,
                f"byte data requires a vocabulary of at least {BYTES} token ids",
                f"Choose data with fewer token ids, such as data=synthetic, or set model.vocab_size={BYTES} or more.",
            )

    def _layout_rules(self) -> Iterator[Problem]:
        parallel = self.parallel
        yield from parallel.task_rules(self.task.name)
        if self.trainer.remat_policy != "nothing" and not parallel.remat and not parallel.is_open():
            given = {"trainer.remat_policy": self.trainer.remat_policy}
            rule = "nothing is recomputed, because parallel.remat is empty"
            fix = "Add modules to parallel.remat, or remove trainer.remat_policy."
            yield Problem(given, rule, fix, unused={"trainer.remat_policy": "nothing"})
        known = (
            self.model.model_config.module_classes() if isinstance(self.model.model_config, SubModelConfig) else None
        )
        if known is not None:
            yield from parallel.module_name_rules(known)
        yield from parallel.unused_fsdp_rules()

    def _distributed_rules(self) -> Iterator[Problem]:
        order, ids = self.distributed.device_order, self.distributed.local_device_ids
        if isinstance(self.task, PlanTaskConfig):
            yield from self.task.place_rules(self.distributed, self.trainer)
        names = self.parallel.axis_names()
        if order is not None and len(set(names)) == len(names) and sorted(order) != sorted(names):
            rule = f"must list each of the mesh axes {', '.join(names)} once"
            fix = f"The default is [{','.join(self.parallel.busiest_axes())}], with the closest devices first."
            yield Problem({"distributed.device_order": order}, rule, fix)
        if ids is not None and self.trainer.simulated_devices is not None:
            given = {"distributed.local_device_ids": ids, "trainer.simulated_devices": self.trainer.simulated_devices}
            yield Problem(
                given,
                "local_device_ids selects GPUs, but simulated devices are not GPUs",
                "Set one of the two to null.",
            )

    def _checkpoint_rules(self) -> Iterator[Problem]:
        trainer, checkpoint = self.trainer, self.checkpoint
        if checkpoint.restore is not None and self.task.name != "train":
            given = {"checkpoint.restore": checkpoint.restore, "task.name": self.task.name}
            yield Problem(given, "only training can continue from a checkpoint", "Use --from RUN instead.")
        if checkpoint.keep != "best":
            return
        if trainer.eval_batches == 0:
            given = {"checkpoint.keep": "best", "trainer.eval_batches": 0}
            yield Problem(
                given,
                "keeping the best checkpoint requires a validation loss",
                "Set trainer.eval_batches, or checkpoint.keep=latest.",
            )
        elif (
            checkpoint.save_every_n_steps > 0
            and trainer.eval_every_n_steps >= 0
            and (trainer.eval_every_n_steps == 0 or checkpoint.save_every_n_steps % trainer.eval_every_n_steps)
        ):
            given = {
                "checkpoint.keep": "best",
                "checkpoint.save_every_n_steps": checkpoint.save_every_n_steps,
                "trainer.eval_every_n_steps": trainer.eval_every_n_steps,
            }
            fits = either(divisors(checkpoint.save_every_n_steps)[-4:])
            rule = "a validation loss is required at every step that is saved"
            yield Problem(given, rule, f"Set trainer.eval_every_n_steps to {fits}.")


def options_of(group: str) -> list[type[ConfigDict]]:
    """Return the config classes of this package for a group of a run. For `model`, include the classes of
    `model_config`."""
    groups = typing.get_type_hints(RunConfig) | {"parallel": ParallelConfig, "model": ModelConfig | SubModelConfig}
    return [cls for cls in (ModelConfig, *OPTIONS.values()) if issubclass(cls, groups.get(group, ()))]
