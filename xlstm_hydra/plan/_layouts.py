"""Enumeration of the possible layouts of a run on a given number of devices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from xlstm_hydra.codec import unchecked
from xlstm_hydra.configs import AutoParallelConfig, ParallelConfig, RunConfig, SubModelConfig, TrainerConfig
from xlstm_hydra.configs.language_model import LanguageModelConfig
from xlstm_hydra.parallel import Parameter
from xlstm_hydra.problems import Problem, divisors

OUTER_CLASSES = ("Embed", "LMHead")
"""Module classes outside the blocks that hold large parameters."""

SHARDING = ("fsdp_modules", "fsdp_min_weight_size", "fsdp_gather_dtype", "fsdp_grad_scatter_dtype")
"""Layout fields that have an effect only if the FSDP mesh axis has two or more devices."""

_MICROBATCHES_PER_STAGE = 8


@dataclass(frozen=True)
class Refusal:
    """Mesh axis sizes of a layout that is not valid for the run, and the reasons."""

    sizes: tuple[int, int, int, int]
    problems: tuple[Problem, ...]


def layouts(run: RunConfig, num_devices: int, parameters: Sequence[Parameter]) -> Iterator[RunConfig | Refusal]:
    """Yield one copy of the run for each layout that the config rules allow, and a `Refusal` for every other layout.

    The batch size stays the same. With `parallel=auto`, layout fields that are set are kept, and fields that affect the
    results are not varied. For any other run, all layout fields are varied, and a model that computes in bfloat16 also
    has layouts that gather parameters in bfloat16.

    Args:
        run: the config. Its `model_class` must be a class.
        num_devices: number of devices.
        parameters: parameters of the model.
    """
    space = _Space(run, parameters)
    for sizes in _sizes(run.parallel, num_devices):
        for candidate in space.with_sizes(sizes):
            problems = {str(problem): problem for problem in candidate.rules()}
            problems |= {str(problem): problem for problem in candidate.device_rules(num_devices)}
            yield Refusal(sizes, tuple(problems.values())) if problems else candidate


def closed(parallel: ParallelConfig, **changes: Any) -> ParallelConfig:
    """Return a copy of a layout with changed fields. The copy is a fixed layout, even if `parallel` is `auto`."""
    values = {field.name: getattr(parallel, field.name) for field in fields(ParallelConfig)}
    return ParallelConfig(**values | changes)


def finer_classes(parameters: Sequence[Parameter], blocks: Sequence[str]) -> list[str]:
    """Return the class names of the direct submodules of the blocks."""
    found: dict[str, None] = {}
    for parameter in parameters:
        for outer, inner in itertools.pairwise(parameter.modules):
            if outer in blocks:
                found[inner] = None
    return list(found)


def shardable_classes(run: RunConfig, parameters: Sequence[Parameter]) -> list[str]:
    """Return the class names of the outermost modules of the model, which together contain all parameters."""
    blocks = block_classes(run)
    if blocks:
        return [*OUTER_CLASSES, *blocks]
    return list(dict.fromkeys(parameter.modules[0] for parameter in parameters if parameter.modules))


def block_classes(run: RunConfig) -> tuple[str, ...]:
    """Return the class names of the blocks of the model; empty if the model does not define any."""
    config = run.model.model_config
    return (config.block_classes() or ()) if isinstance(config, SubModelConfig) else ()


def _sizes(parallel: ParallelConfig, num_devices: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield all mesh axis sizes (data, FSDP, pipeline, tensor) whose product is the number of devices."""
    given = parallel.sizes().values() if parallel.is_open() else (-1, -1, -1, -1)
    data, *others = ([size] if size > 0 else divisors(num_devices) for size in given)
    for fsdp, pipeline, tensor in itertools.product(*others):
        used = fsdp * pipeline * tensor
        if num_devices % used == 0 and num_devices // used in data:
            yield num_devices // used, fsdp, pipeline, tensor


class _Space:
    """Values of the layout fields that vary between the candidate layouts of a run."""

    def __init__(self, run: RunConfig, parameters: Sequence[Parameter]) -> None:
        self.run, self.is_open = run, run.parallel.is_open()
        blocks = list(block_classes(run))
        finer = finer_classes(parameters, blocks)
        self.sharded = run.parallel.fsdp_modules or shardable_classes(run, parameters)
        typed = run.parallel.remat
        wanted = [typed] if self.is_open and typed else [[], typed, blocks, finer if len(finer) > 1 else []]
        self.remat = [names for index, names in enumerate(wanted) if names not in wanted[:index]]
        self.gather_dtypes = _gather_dtypes(run)

    def with_sizes(self, sizes: tuple[int, int, int, int]) -> Iterator[RunConfig]:
        """Yield every candidate run with these mesh axis sizes, valid or not."""
        data, fsdp, pipeline, _ = sizes
        for names, dtype, parts in itertools.product(
            self.remat, self.gather_dtypes if fsdp > 1 else [None], self._parts(data * fsdp, pipeline)
        ):
            for count in self._microbatches(data * fsdp * parts, pipeline):
                model = replace(self.run.model, parallel=self._layout(sizes, names, dtype))
                yield assembled(self.run, model=model, trainer=self._trainer(parts, count, pipeline, bool(names)))

    def _layout(self, sizes: tuple[int, int, int, int], remat: list[str], dtype: str | None) -> ParallelConfig:
        parallel, default = self.run.parallel, ParallelConfig()
        changes: dict[str, Any] = dict(zip(parallel.sizes(), sizes, strict=True)) | {"remat": remat}
        if not (self.is_open and parallel.data_axis_size > 0):
            changes["data_axis_size"] = -1  # inferred, as in most options of the config group `parallel`
        if sizes[1] == 1:
            changes |= {key: default.get(key) for key in SHARDING}
        else:
            changes |= {"fsdp_modules": self.sharded, "fsdp_gather_dtype": dtype}
            if not parallel.fsdp_modules and not self.is_open:
                changes["fsdp_min_weight_size"] = AutoParallelConfig().fsdp_min_weight_size
        if sizes[3] == 1:
            changes["tp_async_dense"] = False
        return closed(parallel, **changes)

    def _trainer(self, parts: int, microbatches: int | None, stages: int, has_remat: bool) -> TrainerConfig:
        trainer = self.run.trainer
        return replace(
            trainer,
            gradient_accumulate_steps=parts,
            pipeline_microbatches=microbatches,
            pipeline_remat=trainer.pipeline_remat and stages > 1,
            remat_policy=trainer.remat_policy if has_remat else "nothing",
        )

    def _parts(self, shares: int, stages: int) -> list[int]:
        """Return the candidate values of `gradient_accumulate_steps`."""
        trainer = self.run.trainer
        is_kept = self.is_open and (trainer.gradient_accumulate_steps != 1 or _may_drop(self.run))
        if is_kept or trainer.batch_size % (shares * stages):
            return [trainer.gradient_accumulate_steps]
        return divisors(trainer.batch_size // (shares * stages))

    def _microbatches(self, shares: int, stages: int) -> list[int | None]:
        """Return the candidate values of `pipeline_microbatches`; None stands for the default."""
        trainer = self.run.trainer
        if stages == 1:
            return [None]
        if (self.is_open and trainer.pipeline_microbatches is not None) or trainer.batch_size % (shares * stages):
            return [trainer.pipeline_microbatches]
        rows = trainer.batch_size // shares
        counts = [n for n in divisors(rows) if stages <= n <= _MICROBATCHES_PER_STAGE * stages]
        default = max(n for n in divisors(rows) if n <= 4 * stages)
        return [None if count == default else count for count in counts]


def _gather_dtypes(run: RunConfig) -> list[str | None]:
    """Return the candidate dtypes for gathering parameters. bfloat16 is tried only if the model computes in bfloat16,
    because it then changes the results no more than the computation does."""
    typed = run.parallel.fsdp_gather_dtype
    if run.parallel.is_open():
        return [typed]
    config = run.model.model_config
    halves = isinstance(config, LanguageModelConfig) and config.dtype == "bfloat16"
    return list(dict.fromkeys([typed, None, *(["bfloat16"] if halves else [])]))


def _may_drop(run: RunConfig) -> bool:
    """True if the dropout masks may depend on the number of gradient accumulation steps."""
    config = run.model.model_config
    return not isinstance(config, LanguageModelConfig) or config.dropout_probability() > 0


def assembled(run: RunConfig, **groups: Any) -> RunConfig:
    """Return the run with other config groups. Their rules are not checked, because there may be thousands of runs."""
    return unchecked(RunConfig, {name: getattr(run, name) for name in run.__dataclass_fields__} | groups)
