"""How long and with what batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import field

from xlstm_hydra.problems import Problem, divisors, either

from ._config_dict import ConfigDict, config_dataclass
from ._fields import BOOKKEEPING, LAYOUT, NUMERICS, affects
from ._rules import at_least, below, one_of

REMAT_POLICIES = ("nothing", "dots", "dots_with_no_batch_dims")
"""What a recomputed module may keep for the backward pass, by the names of `jax.checkpoint_policies`."""


@config_dataclass
class TrainerConfig(ConfigDict, schema="trainer"):
    """The training loop."""

    max_steps: int = field(default=300, metadata=affects(NUMERICS, compiled=False))
    """Optimizer steps in the whole run."""

    batch_size: int = field(default=8, metadata=affects(NUMERICS))
    """Examples per optimizer step, over all devices and processes."""

    gradient_accumulate_steps: int = field(default=1, metadata=affects(LAYOUT))
    """Parts that a step's batch is computed in, one after the other, to save memory. The gradient is that of the
    whole."""

    pipeline_microbatches: int | None = field(default=None, metadata=affects(LAYOUT))
    """Parts that the rows of each device go through the pipeline in, at least as many as there are stages. More parts
    leave the stages idle for a smaller share of the time, (stages - 1) / (parts + stages - 1). null: up to 4 per stage,
    as far as the rows divide."""

    pipeline_remat: bool = field(default=False, metadata=affects(LAYOUT))
    """Keep only what enters a pipeline stage for the backward pass, and compute the whole stage again there. Beside
    `parallel.remat` it is a second recomputation."""

    remat_policy: str = field(default="nothing", metadata=affects(LAYOUT))
    """What the modules that `parallel.remat` names keep for the backward pass instead of recomputing it: nothing (least
    memory), dots (the result of every matrix product) or dots_with_no_batch_dims (of those products only that are not
    batched, as dense layers are and the products inside the cell are not)."""

    seed: int = field(default=0, metadata=affects(NUMERICS, compiled=False))
    """Seed of the initial parameters and of dropout."""

    eval_every_n_steps: int = field(default=100, metadata=affects(BOOKKEEPING))
    """Steps between validations. 0: only at the end."""

    eval_batches: int = field(default=8, metadata=affects(BOOKKEEPING))
    """Batches per validation, always the same ones. 0: no validation at all."""

    simulated_devices: int | None = field(default=None, metadata=affects(LAYOUT, compiled=False))
    """Run each process on this many simulated CPU devices, to try a layout. null: on the devices that there are."""

    compilation_cache_dir: str | None = field(default="auto", metadata=affects(BOOKKEEPING))
    """Folder that what training compiles is kept in, for later runs that need the same programs; all processes must see
    it. Whoever may write in it can run code here, so a folder that others than this user may write is not used, and a
    folder that a checkpoint recorded is replaced by auto. auto: the one that JAX has been given, as by
    `JAX_COMPILATION_CACHE_DIR`, else `~/.cache/xlstm_hydra/compiled` (in `XDG_CACHE_HOME` if that is set). null:
    nothing is kept."""

    ignore_plan: bool = field(default=False, metadata=affects(BOOKKEEPING))
    """Train also where the plan says that the devices have too little memory."""

    check_for_nan: bool = field(default=True, metadata=affects(BOOKKEEPING))
    """Stop with an error at the first loss that is not finite, before it is saved."""

    debug_nans: bool = field(default=False, metadata=affects(BOOKKEEPING))
    """Stop at the first operation that gives NaN and show where it is. Slow."""

    def rules(self) -> Iterator[Problem]:
        """Ranges; parts must divide the batch."""
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
            yield Problem({"compilation_cache_dir": folder}, "must name a folder", "null keeps nothing.")
        elif "://" in folder:
            fix = "Leave {compilation_cache_dir}=auto, and set JAX_COMPILATION_CACHE_DIR, which JAX reads itself."
            yield Problem({"compilation_cache_dir": folder}, "is no folder of this host", fix)

    def batch_rules(self, data: int, fsdp: int, pipeline: int | None) -> Iterator[Problem]:
        """The rule that the batch divides on mesh axes of these sizes. Keys are whole."""
        batch, parts = self.batch_size, max(self.gradient_accumulate_steps, 1)
        if batch < 1:
            return
        needed, microbatches = self.batch_unit(data, fsdp, pipeline), max(self.pipeline_microbatches or 1, 1)
        if batch % parts:  # reported for the trainer
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
        """Return what must divide the batch on mesh axes of these sizes."""
        stages, microbatches = max(pipeline or 1, 1), max(self.pipeline_microbatches or 1, 1)
        # The rows must divide into microbatches for the stages, and into one share per stage for the head.
        rows = math.lcm(stages, microbatches) if stages > 1 else 1
        return data * fsdp * max(self.gradient_accumulate_steps, 1) * rows

    def microbatches(self, data: int, fsdp: int, pipeline: int) -> int:
        """Return the number of parts that the rows of a device go through a pipeline in, for a batch that divides."""
        if pipeline == 1:
            return 1
        if self.pipeline_microbatches is not None:
            return self.pipeline_microbatches
        rows = self.batch_size // (data * fsdp * self.gradient_accumulate_steps)
        return max(count for count in divisors(rows) if count <= 4 * pipeline)

    def pipeline_rules(self, stages: int) -> Iterator[Problem]:
        """The rules of the settings of the pipeline, where there is one and where there is none. Keys are whole."""
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
            yield Problem(given, "with fewer microbatches than stages some stages are idle all the time", fix)
