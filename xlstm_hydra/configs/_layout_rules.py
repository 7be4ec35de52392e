"""Rules of a layout between its fields, the sizes of the mesh axes, and the model."""

from __future__ import annotations

from collections.abc import Iterator

from xlstm_hydra.problems import Problem, either, nearest, show

from .parallel import ParallelConfig
from .trainer import TrainerConfig


def unused_rules(parallel: ParallelConfig, size_key: str, *keys: str) -> Iterator[Problem]:
    """The rule that settings of a mesh axis are left away where it has one device."""
    given = {f"parallel.{key}": parallel.get(key) for key in keys if parallel.get(key)}
    if given:
        size = parallel.get(size_key)
        rule = f"there is nothing to exchange where parallel.{size_key} is 1"
        if size == -1:
            rule += ", as it is inferred to be"
        default = ParallelConfig()
        neutral = {f"parallel.{key}": default.get(key) for key in keys if parallel.get(key)}
        yield Problem(given, rule, f"Set parallel.{size_key} to 2 or more, or leave this away.", idle=neutral)


def module_name_rules(parallel: ParallelConfig, known: tuple[str, ...]) -> Iterator[Problem]:
    """The rule that `remat` and `fsdp_modules` name module classes that the model has."""
    for key in ("remat", "fsdp_modules"):
        named = parallel.get(key)
        for name in named:
            if name not in known:
                hint = nearest(name, known)
                fix = hint if hint.startswith("Known") else f"{hint} Known: {', '.join(known)}."
                neutral = {f"parallel.{key}": [other for other in named if other in known]}
                yield Problem({f"parallel.{key}": name}, "no module class of this model", fix, idle=neutral)


def open_layout_rules(parallel: ParallelConfig, task: str) -> Iterator[Problem]:
    """The rule that a layout which is still to be chosen is one for training."""
    if parallel.is_open() and task not in ("train", "plan"):
        given = {"parallel.name": parallel.get("name"), "task.name": task}
        rule = "a layout is chosen by what a step of training takes"
        yield Problem(given, rule, "Choose one, such as parallel=dp or parallel=fsdp.")


def idle_fsdp_rules(parallel: ParallelConfig) -> Iterator[Problem]:
    """The rule that how parameters are sharded is left away where no module's are."""
    default = ParallelConfig()
    changed = {
        key: parallel.get(key)
        for key in ("fsdp_gather_dtype", "fsdp_grad_scatter_dtype", "fsdp_min_weight_size")
        if parallel.get(key) != default.get(key)
    }
    if changed and not parallel.fsdp_modules and not parallel.is_open():
        rule = "nothing is sharded or gathered, because parallel.fsdp_modules is empty"
        fix = f"Name modules there, or leave this at {either(show(default.get(key)) for key in changed)}."
        neutral = {f"parallel.{key}": default.get(key) for key in changed}
        yield Problem({f"parallel.{key}": value for key, value in changed.items()}, rule, fix, idle=neutral)


def pipeline_rules(trainer: TrainerConfig, stages: int) -> Iterator[Problem]:
    """The rules of the settings of the pipeline, where there is one and where there is none."""
    where = {"parallel.pipeline_axis_size": stages}
    microbatches = trainer.pipeline_microbatches
    settings = {"trainer.pipeline_microbatches": microbatches, "trainer.pipeline_remat": trainer.pipeline_remat}
    idle = {key: value for key, value in settings.items() if value}
    if stages == 1 and idle:
        fix = "Set parallel.pipeline_axis_size to 2 or more, or remove this setting."
        default = TrainerConfig()
        neutral = {key: default.get(key.rpartition(".")[2]) for key in idle}
        yield Problem(idle | where, "there is no pipeline", fix, idle=neutral)
    if microbatches is not None and 0 < microbatches < stages:
        given = {"trainer.pipeline_microbatches": microbatches, **where}
        fix = f"Set trainer.pipeline_microbatches to {stages} or more, or remove it."
        yield Problem(given, "with fewer microbatches than stages some stages are idle all the time", fix)
