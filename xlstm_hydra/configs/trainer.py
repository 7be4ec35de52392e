"""Config group `trainer`: the training loop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import field

from xlstm_hydra.problems import Problem, divisors, either

from ._config_dict import ConfigDict, config_dataclass
from ._fields import BOOKKEEPING, LAYOUT, NUMERICS, affects
from ._rules import at_least, below, one_of

REMAT_POLICIES = ("nothing", "dots", "dots_with_no_batch_dims")
"""Values of `remat_policy`: names of policies in `jax.checkpoint_policies`, without the suffix `_saveable`."""


@config_dataclass
class TrainerConfig(ConfigDict, schema="trainer"):
    """The training loop: steps, batches, validation, compilation and error checks."""

    max_steps: int = field(default=300, metadata=affects(NUMERICS, compiled=False))
    """Total number of optimizer steps, including the steps before a run was resumed."""

    batch_size: int = field(default=8, metadata=affects(NUMERICS))
    """Number of examples per optimizer step, over all devices and processes."""

    gradient_accumulate_steps: int = field(default=1, metadata=affects(LAYOUT))
    """Number of equal parts into which the batch of each step is split. The parts are processed one after another to
    save memory, and their gradients are accumulated into the gradient of the whole batch. 1: no accumulation."""

    pipeline_microbatches: int | None = field(default=None, metadata=affects(LAYOUT))
    """Number M of microbatches into which a pipeline of S stages splits the examples of each device; M must be at least
    S. The pipeline is idle for a fraction (S - 1) / (M + S - 1) of the time. null: the largest possible M up to 4 S."""

    pipeline_remat: bool = field(default=False, metadata=affects(LAYOUT))
    """Store only the input of each pipeline stage for the backward pass, and recompute the rest of the stage. Modules
    in `parallel.remat` are then recomputed twice."""

    remat_policy: str = field(default="nothing", metadata=affects(LAYOUT))
    """Intermediate results that the modules in `parallel.remat` store instead of recomputing: nothing (least memory),
    dots (results of all matrix products) or dots_with_no_batch_dims (results of matrix products without batch
    dimensions, as in dense layers but not inside the mLSTM cell or attention)."""

    seed: int = field(default=0, metadata=affects(NUMERICS, compiled=False))
    """Random seed for the initial parameters and dropout."""

    eval_every_n_steps: int = field(default=100, metadata=affects(BOOKKEEPING))
    """Number of steps between validations. 0: validate only after the last step."""

    eval_batches: int = field(default=8, metadata=affects(BOOKKEEPING))
    """Number of batches per validation; every validation uses the same batches. 0: no validation."""

    simulated_devices: int | None = field(default=None, metadata=affects(LAYOUT, compiled=False))
    """Number of simulated CPU devices per process, to try a layout without the hardware. null: use the real devices."""

    compilation_cache_dir: str | None = field(default="auto", metadata=affects(BOOKKEEPING))
    """Cache directory for compiled programs, which must be accessible to all processes. auto: the directory configured
    in JAX, for example with `JAX_COMPILATION_CACHE_DIR`, otherwise `xlstm_hydra/compiled` in `XDG_CACHE_HOME` or
    `~/.cache`. null: no cache. Anyone who can write to the directory can run code in this process, so a directory that
    other users can write to is not used, and a directory from the metadata of a checkpoint is replaced by auto."""

    ignore_plan: bool = field(default=False, metadata=affects(BOOKKEEPING))
    """Start training even if the predicted peak memory exceeds the memory of the devices."""

    check_for_nan: bool = field(default=True, metadata=affects(BOOKKEEPING))
    """Stop with an error at the first loss that is NaN or infinite, before a checkpoint of that step is saved."""

    debug_nans: bool = field(default=False, metadata=affects(BOOKKEEPING))
    """Stop at the first operation that produces a NaN, and show its location in the code (`jax_debug_nans`). Slows down
    training."""

    def rules(self) -> Iterator[Problem]:
        """Check value ranges, and that `gradient_accumulate_steps` divides `batch_size`."""
        yield from at_least(self, 1, "max_steps", "batch_size", "gradient_accumulate_steps")
        yield from at_least(self, 1, "pipeline_microbatches", "simulated_devices")
        yield from one_of(self, "remat_policy", REMAT_POLICIES)
        yield from at_least(self, 0, "seed", "eval_every_n_steps", "eval_batches")
        yield from below(self, 2**32, "seed")
        yield from self._cache_rules()
        parts = self.gradient_accumulate_steps
        if parts > 0 and self.batch_size > 0 and self.batch_size % parts:
            given = {"batch_size": self.batch_size, "gradient_accumulate_steps": parts}
            rule = "{gradient_accumulate_steps} must divide {batch_size}"
            yield Problem(given, rule, f"Set {{gradient_accumulate_steps}} to {either(divisors(self.batch_size))}.")

    def _cache_rules(self) -> Iterator[Problem]:
        folder = self.compilation_cache_dir
        if folder is None or folder == "auto":
            return
        if not folder.strip():
            yield Problem(
                {"compilation_cache_dir": folder},
                "must name a folder",
                "Set {compilation_cache_dir}=null for no cache.",
            )
        elif "://" in folder:
            fix = "Leave {compilation_cache_dir}=auto, and set JAX_COMPILATION_CACHE_DIR, which JAX itself reads."
            yield Problem({"compilation_cache_dir": folder}, "must be a folder on this host", fix)

    def batch_rules(self, data: int, fsdp: int, pipeline: int | None) -> Iterator[Problem]:
        """Check that the batch divides over mesh axes of these sizes. `pipeline` is None if its size is not known yet.
        Keys in problems are absolute."""
        batch, parts = self.batch_size, max(self.gradient_accumulate_steps, 1)
        if batch < 1:
            return
        needed, microbatches = self.batch_unit(data, fsdp, pipeline), max(self.pipeline_microbatches or 1, 1)
        if batch % parts:  # already reported by `rules`
            needed, parts = needed // parts, 1
        terms = {
            "parallel.data_axis_size": data,
            "parallel.fsdp_axis_size": fsdp,
            "trainer.gradient_accumulate_steps": parts,
        }
        given = {key: value for key, value in terms.items() if value != 1}
        factors = [f"{key.rpartition('.')[2]}({value})" for key, value in given.items()]
        if pipeline is not None and pipeline > 1:
            given["parallel.pipeline_axis_size"] = pipeline
            factors.append(f"pipeline_axis_size({pipeline})")
            if microbatches != 1:
                given["trainer.pipeline_microbatches"] = microbatches
                factors[-1] = f"lcm(pipeline_axis_size({pipeline}), pipeline_microbatches({microbatches}))"
        if batch % needed:
            lower = batch // needed * needed
            choices = either([size for size in (lower, lower + needed) if size > 0])
            rule = f"the batch size must be a multiple of {' * '.join(factors)} = {needed}"
            yield Problem({"trainer.batch_size": batch, **given}, rule, f"Set trainer.batch_size to {choices}.")

    def batch_unit(self, data: int, fsdp: int, pipeline: int | None) -> int:
        """Return the number that `batch_size` must be a multiple of, for mesh axes of these sizes."""
        stages, microbatches = max(pipeline or 1, 1), max(self.pipeline_microbatches or 1, 1)
        # The stages process the examples in equal microbatches, and the head processes an equal share on each stage.
        rows = math.lcm(stages, microbatches) if stages > 1 else 1
        return data * fsdp * max(self.gradient_accumulate_steps, 1) * rows

    def microbatches(self, data: int, fsdp: int, pipeline: int) -> int:
        """Return the number of pipeline microbatches. Assumes that `batch_size` is a multiple of `batch_unit`."""
        if pipeline == 1:
            return 1
        if self.pipeline_microbatches is not None:
            return self.pipeline_microbatches
        rows = self.batch_size // (data * fsdp * self.gradient_accumulate_steps)
        return max(count for count in divisors(rows) if count <= 4 * pipeline)

    def pipeline_rules(self, stages: int) -> Iterator[Problem]:
        """Check the pipeline settings against the number of stages. Keys in problems are absolute."""
        where, microbatches = {"parallel.pipeline_axis_size": stages}, self.pipeline_microbatches
        settings = {"trainer.pipeline_microbatches": microbatches, "trainer.pipeline_remat": self.pipeline_remat}
        given = {key: value for key, value in settings.items() if value}
        if stages == 1 and given:
            fix = "Set parallel.pipeline_axis_size to 2 or more, or remove this setting."
            neutral = {key: TrainerConfig().get(key.rpartition(".")[2]) for key in given}
            yield Problem(given | where, "pipeline settings have no effect without a pipeline", fix, unused=neutral)
        if microbatches is not None and 0 < microbatches < stages:
            given = {"trainer.pipeline_microbatches": microbatches, **where}
            fix = f"Set trainer.pipeline_microbatches to {stages} or more, or remove it."
            yield Problem(given, "with fewer microbatches than stages, some stages would always be idle", fix)
