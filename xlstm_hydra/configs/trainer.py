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
"""Values of `remat_policy`, similar to the names in `jax.checkpoint_policies`."""


@config_dataclass
class TrainerConfig(ConfigDict, schema="trainer"):
    """The training loop: steps, batches, validation, and where it runs."""

    max_steps: int = field(default=300, metadata=affects(NUMERICS, compiled=False))
    """Number of optimizer steps in the whole run."""

    batch_size: int = field(default=8, metadata=affects(NUMERICS))
    """Examples per optimizer step, over all devices and processes."""

    gradient_accumulate_steps: int = field(default=1, metadata=affects(LAYOUT))
    """Number of parts into which the batch of a step is split. They are computed one after the other to save memory.
    The gradient is that of the whole batch."""

    pipeline_microbatches: int | None = field(default=None, metadata=affects(LAYOUT))
    """Number of microbatches into which the examples of each device are split for the pipeline, at least the number of
    stages. More microbatches reduce the idle fraction of the time, (stages - 1) / (microbatches + stages - 1). null: up
    to 4 per stage, as far as the examples divide."""

    pipeline_remat: bool = field(default=False, metadata=affects(LAYOUT))
    """Recompute every whole pipeline stage in the backward pass, so that only its input is stored. If `parallel.remat`
    is also set, modules are recomputed twice."""

    remat_policy: str = field(default="nothing", metadata=affects(LAYOUT))
    """Intermediate results that the modules in `parallel.remat` store instead of recomputing: nothing (least memory),
    dots (the results of all matrix products) or dots_with_no_batch_dims (only those of unbatched products, such as
    dense layers, but not the batched products inside the cell)."""

    seed: int = field(default=0, metadata=affects(NUMERICS, compiled=False))
    """Random seed for the initial parameters and dropout."""

    eval_every_n_steps: int = field(default=100, metadata=affects(BOOKKEEPING))
    """Steps between validations. 0: validate only at the end."""

    eval_batches: int = field(default=8, metadata=affects(BOOKKEEPING))
    """Number of batches per validation, the same ones every time. 0: no validation."""

    simulated_devices: int | None = field(default=None, metadata=affects(LAYOUT, compiled=False))
    """Number of simulated CPU devices per process, for trying a layout without the hardware. null: use the real
    devices."""

    compilation_cache_dir: str | None = field(default="auto", metadata=affects(BOOKKEEPING))
    """Folder in which compiled programs are cached for later runs. All processes must have access to it. Anyone who can
    write to it can run code in this process, so a folder that other users can write to is not used, and a folder from
    the metadata of a checkpoint is replaced by auto. auto: JAX's own setting, such as `JAX_COMPILATION_CACHE_DIR`, or
    else `~/.cache/xlstm_hydra/compiled` (inside `XDG_CACHE_HOME` if that is set). null: no cache."""

    ignore_plan: bool = field(default=False, metadata=affects(BOOKKEEPING))
    """Train even if the predicted memory exceeds that of the devices."""

    check_for_nan: bool = field(default=True, metadata=affects(BOOKKEEPING))
    """Stop with an error at the first loss that is not finite, before a checkpoint with it is saved."""

    debug_nans: bool = field(default=False, metadata=affects(BOOKKEEPING))
    """Stop at the first operation that produces a NaN and show its place in the code. Slow."""

    def rules(self) -> Iterator[Problem]:
        """Check ranges, and that the parts divide the batch."""
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
            yield Problem(given, rule, f"Set it to {either(divisors(self.batch_size))}.")

    def _cache_rules(self) -> Iterator[Problem]:
        folder = self.compilation_cache_dir
        if folder is None or folder == "auto":
            return
        if not folder.strip():
            yield Problem({"compilation_cache_dir": folder}, "must name a folder", "Set it to null for no cache.")
        elif "://" in folder:
            fix = "Leave {compilation_cache_dir}=auto, and set JAX_COMPILATION_CACHE_DIR, which JAX itself reads."
            yield Problem({"compilation_cache_dir": folder}, "must be a folder on this host", fix)

    def batch_rules(self, data: int, fsdp: int, pipeline: int | None) -> Iterator[Problem]:
        """Check that the batch divides over mesh axes of these sizes. Keys are complete."""
        batch, parts = self.batch_size, max(self.gradient_accumulate_steps, 1)
        if batch < 1:
            return
        needed, microbatches = self.batch_unit(data, fsdp, pipeline), max(self.pipeline_microbatches or 1, 1)
        if batch % parts:  # reported by the trainer's own rules
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
            rule = f"the batch must divide over {' * '.join(factors)} = {needed}"
            yield Problem({"trainer.batch_size": batch, **given}, rule, f"Set trainer.batch_size to {choices}.")

    def batch_unit(self, data: int, fsdp: int, pipeline: int | None) -> int:
        """Return the number that must divide the batch on mesh axes of these sizes."""
        stages, microbatches = max(pipeline or 1, 1), max(self.pipeline_microbatches or 1, 1)
        # The rows must divide into microbatches for the stages, and into one share per stage for the head.
        rows = math.lcm(stages, microbatches) if stages > 1 else 1
        return data * fsdp * max(self.gradient_accumulate_steps, 1) * rows

    def microbatches(self, data: int, fsdp: int, pipeline: int) -> int:
        """Return the number of microbatches of a pipeline, for a batch that divides."""
        if pipeline == 1:
            return 1
        if self.pipeline_microbatches is not None:
            return self.pipeline_microbatches
        rows = self.batch_size // (data * fsdp * self.gradient_accumulate_steps)
        return max(count for count in divisors(rows) if count <= 4 * pipeline)

    def pipeline_rules(self, stages: int) -> Iterator[Problem]:
        """Check the pipeline settings for this number of stages. Keys are complete."""
        where, microbatches = {"parallel.pipeline_axis_size": stages}, self.pipeline_microbatches
        settings = {"trainer.pipeline_microbatches": microbatches, "trainer.pipeline_remat": self.pipeline_remat}
        given = {key: value for key, value in settings.items() if value}
        if stages == 1 and given:
            fix = "Set parallel.pipeline_axis_size to 2 or more, or remove this setting."
            neutral = {key: TrainerConfig().get(key.rpartition(".")[2]) for key in given}
            yield Problem(given | where, "there is no pipeline", fix, unused=neutral)
        if microbatches is not None and 0 < microbatches < stages:
            given = {"trainer.pipeline_microbatches": microbatches, **where}
            fix = f"Set trainer.pipeline_microbatches to {stages} or more, or remove it."
            yield Problem(given, "with fewer microbatches than stages, some stages would always be idle", fix)
