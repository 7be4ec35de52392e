"""Config group `parallel`: the layout of a run over devices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import field

from xlstm_hydra.codec import plain_dtypes
from xlstm_hydra.problems import ConfigError, Problem, divisors, either, nearest, show

from ._config_dict import ConfigDict, config_dataclass
from ._fields import LAYOUT, NUMERICS, affects
from ._rules import at_least, below, one_of, own_name

DTYPES = ("float32", "bfloat16", "float16")
"""Floating-point types for computation and communication."""

_SIZES = ("data_axis_size", "fsdp_axis_size", "pipeline_axis_size", "model_axis_size")
_NAMES = ("data_axis_name", "fsdp_axis_name", "pipeline_axis_name", "model_axis_name")


@config_dataclass
class ParallelConfig(ConfigDict, schema="parallel"):
    """The layout over devices: sizes and names of the mesh axes, sharding, and recomputation.

    The product of the four sizes must equal the number of devices.
    """

    data_axis_size: int = field(default=-1, metadata=affects(LAYOUT))
    """Size of the data axis: replicas with different examples and the same parameters. -1: all devices that the other
    axes leave."""

    fsdp_axis_size: int = field(default=1, metadata=affects(LAYOUT))
    """Size of the FSDP axis: devices with different examples, over which parameters, gradients and optimizer moments
    are sharded. -1: all devices that the other axes leave. 1: no sharding of parameters."""

    pipeline_axis_size: int = field(default=1, metadata=affects(LAYOUT))
    """Size of the pipeline axis: stages into which the stack of blocks is divided. -1: all devices that the other axes
    leave. 1: no pipeline."""

    model_axis_size: int = field(default=1, metadata=affects(LAYOUT))
    """Size of the tensor-parallel axis: devices over which heads, channels and vocabulary are divided. -1: all devices
    that the other axes leave. 1: no tensor parallelism."""

    data_axis_name: str = field(default="dp", metadata=affects(LAYOUT))
    """Name of the data axis of the mesh in partition specs and reports."""

    fsdp_axis_name: str = field(default="fsdp", metadata=affects(LAYOUT))
    """Name of the FSDP axis of the mesh in partition specs and reports."""

    pipeline_axis_name: str = field(default="pp", metadata=affects(LAYOUT))
    """Name of the pipeline axis of the mesh in partition specs and reports."""

    model_axis_name: str = field(default="tp", metadata=affects(LAYOUT))
    """Name of the tensor-parallel axis of the mesh in partition specs and reports."""

    remat: list[str] = field(default_factory=list, metadata=affects(LAYOUT))
    """Class names of the modules whose activations are recomputed in the backward pass. Empty: all activations are
    stored."""

    fsdp_modules: list[str] = field(default_factory=list, metadata=affects(LAYOUT))
    """Class names of the modules whose parameters are sharded over the FSDP axis. Empty: no parameters are sharded. If
    the axis has size 1, nothing is sharded and the run logs it."""

    fsdp_min_weight_size: int = field(default=262144, metadata=affects(LAYOUT))
    """Minimum number of elements for a parameter to be sharded over the FSDP axis, counted for one block and one
    tensor-parallel device. Smaller parameters are replicated. 0: all parameters are sharded."""

    fsdp_gather_dtype: str | None = field(default=None, metadata=affects(NUMERICS))
    """Data type to which a sharded parameter is cast before its all-gather: float32, bfloat16 or float16. null: no
    cast."""

    fsdp_grad_scatter_dtype: str | None = field(default=None, metadata=affects(NUMERICS))
    """Data type to which the gradient of a sharded parameter is cast before its reduce-scatter: float32, bfloat16 or
    float16. null: the data type of the parameter."""

    tp_async_dense: bool = field(default=False, metadata=affects(LAYOUT))
    """Overlap the communication of tensor-parallel dense layers with their computation (collective matmul)."""

    def __post_init__(self) -> None:
        plain_dtypes(self)
        super().__post_init__()

    def rules(self) -> Iterator[Problem]:
        """Check sizes, names and data types."""
        yield from self.size_rules()
        names = {name: getattr(self, name) for name in _NAMES}
        for name, value in names.items():
            if not value.isidentifier():
                yield Problem({name: value}, "an axis name must be a word of letters, digits and _")
        if len(set(names.values())) < len(names):
            twice = {key: value for key, value in names.items() if list(names.values()).count(value) > 1}
            yield Problem(twice, "axis names must differ", "The defaults are dp, fsdp, pp and tp.")
        if self.fsdp_min_weight_size < 0:
            yield Problem({"fsdp_min_weight_size": self.fsdp_min_weight_size}, "must be 0 or more")
        yield from one_of(self, "fsdp_gather_dtype", DTYPES, optional=True)
        yield from one_of(self, "fsdp_grad_scatter_dtype", DTYPES, optional=True)

    def size_rules(self) -> Iterator[Problem]:
        """Check the sizes without the number of devices."""
        for name, size in self.sizes().items():
            if size < 1 and size != -1:
                yield Problem({name: size}, "an axis size is positive, or -1 to be inferred")
        yield from self.inference_rules()

    def inference_rules(self) -> Iterator[Problem]:
        """Check that at most one size is inferred."""
        inferred = {name: size for name, size in self.sizes().items() if size == -1}
        if len(inferred) > 1:
            keep = "{" + next(iter(inferred)) + "}"
            yield Problem(
                inferred, "at most one axis size can be -1", f"Give all but one a number, or keep only {keep}=-1."
            )

    def module_name_rules(self, known: tuple[str, ...]) -> Iterator[Problem]:
        """Check that `remat` and `fsdp_modules` list module classes of the model. Keys are complete."""
        for key in ("remat", "fsdp_modules"):
            named = self.get(key)
            for name in named:
                if name not in known:
                    hint = nearest(name, known)
                    fix = hint if hint.startswith("Known") else f"{hint} Known: {', '.join(known)}."
                    neutral = {f"parallel.{key}": [other for other in named if other in known]}
                    yield Problem({f"parallel.{key}": name}, "not a module class of this model", fix, unused=neutral)

    def task_rules(self, task: str) -> Iterator[Problem]:
        """Check that parallel=auto is used only for training and plans. Keys are complete."""
        if self.is_open() and task not in ("train", "plan"):
            given = {"parallel.name": self.get("name"), "task.name": task}
            rule = "parallel=auto chooses a layout for training only"
            yield Problem(given, rule, "Choose a layout, such as parallel=dp or parallel=fsdp.")

    def unused_fsdp_rules(self) -> Iterator[Problem]:
        """Check that settings of sharding are left at their defaults if no modules are sharded. Keys are complete."""
        default = ParallelConfig()
        changed = {
            key: self.get(key)
            for key in ("fsdp_gather_dtype", "fsdp_grad_scatter_dtype", "fsdp_min_weight_size")
            if self.get(key) != default.get(key)
        }
        if changed and not self.fsdp_modules and not self.is_open():
            rule = "nothing is sharded or gathered, because parallel.fsdp_modules is empty"
            fix = f"List modules there, or leave this at {either(show(default.get(key)) for key in changed)}."
            neutral = {f"parallel.{key}": default.get(key) for key in changed}
            yield Problem({f"parallel.{key}": value for key, value in changed.items()}, rule, fix, unused=neutral)

    def unused_axis_rules(self, size_key: str, *keys: str) -> Iterator[Problem]:
        """Check that settings of a mesh axis of size 1 are left at their defaults. Keys are complete."""
        given = {f"parallel.{key}": self.get(key) for key in keys if self.get(key)}
        if given:
            size = self.get(size_key)
            rule = f"has no effect if parallel.{size_key} is 1"
            if size == -1:
                rule += ", which is inferred here"
            default = ParallelConfig()
            neutral = {f"parallel.{key}": default.get(key) for key in keys if self.get(key)}
            yield Problem(given, rule, f"Set parallel.{size_key} to 2 or more, or remove this setting.", unused=neutral)

    def is_open(self) -> bool:
        """True if the layout is chosen later, when the devices are known."""
        return False

    def sizes(self) -> dict[str, int]:
        """Return the four sizes by field name, in mesh order."""
        return {name: getattr(self, name) for name in _SIZES}

    def known_size(self) -> int:
        """Return the product of the sizes that are not inferred."""
        return math.prod(size for size in self.sizes().values() if size != -1)

    def usable_near(self, num_devices: int) -> list[int]:
        """Return the closest numbers of devices that the sizes can multiply to."""
        known = self.known_size()
        if -1 not in self.sizes().values():
            return [known]
        lower = num_devices // known * known
        return [number for number in (lower, lower + known) if number > 0]

    def axis_names(self) -> tuple[str, str, str, str]:
        """Return the four axis names, in mesh order."""
        return (self.data_axis_name, self.fsdp_axis_name, self.pipeline_axis_name, self.model_axis_name)

    def busiest_axes(self) -> tuple[str, str, str, str]:
        """Return the four axis names, from the axis that communicates most, whose devices should be close, to the
        least."""
        return (self.model_axis_name, self.fsdp_axis_name, self.pipeline_axis_name, self.data_axis_name)

    def axis_sizes(self, num_devices: int) -> dict[str, int]:
        """Return the size of each mesh axis by name, in mesh order, with -1 replaced.

        Raises:
            ConfigError: the sizes do not multiply to `num_devices`. The keys are relative to this config.
        """
        sizes, known = self.sizes(), self.known_size()
        inferred = next((name for name, size in sizes.items() if size == -1), None)
        if inferred is not None and num_devices % known == 0 and num_devices >= known:
            sizes[inferred] = num_devices // known
        elif inferred is not None or known != num_devices:
            raise ConfigError([self._product_problem(sizes, known, inferred, num_devices)])
        return dict(zip(self.axis_names(), sizes.values(), strict=True))

    def _product_problem(self, sizes: dict[str, int], known: int, inferred: str | None, num_devices: int) -> Problem:
        terms = [f"{name}({size})" for name, size in zip(self.axis_names(), sizes.values(), strict=True) if size != -1]
        product = f"{' * '.join(terms)} = {known}"
        if inferred is not None:
            rule = f"{product} must divide the number of devices, {num_devices}"
        else:
            rule = f"{product} must equal the number of devices, {num_devices}"
        given = {name: size for name, size in sizes.items() if size not in (1, -1)} or {
            "data_axis_size": sizes["data_axis_size"]
        }
        choices = either(divisors(num_devices))
        fix = f"Sizes that divide {num_devices}: {choices}"
        others = known // max(sizes["data_axis_size"], 1)
        if inferred is None and sizes["data_axis_size"] != 1 and num_devices % others == 0:
            fix = f"Set {{data_axis_size}}=-1 to infer {num_devices // others}. {fix}"
        elif inferred is None and num_devices % others == 0:
            fix = f"Set {{data_axis_size}}={num_devices // others} (or -1). {fix}"
        return Problem(given, rule, f"{fix}.", also=() if inferred else tuple(sizes))


@config_dataclass
class AutoParallelConfig(ParallelConfig, schema="auto"):
    """The layout with the best predicted speed among those that fit on the devices and in their memory.

    It is chosen when the number and kind of the devices are known; the run then has that layout. Settings that change
    the results, such as the batch size and data types, are never changed. `remat` and `fsdp_modules` are chosen if they
    are empty, `trainer.pipeline_microbatches` if it is null, and `trainer.gradient_accumulate_steps` if it is 1.
    Settings of mesh axes that get size 1 are dropped."""

    name: str = field(default="auto", metadata=affects(LAYOUT))
    """Name of the layout: auto."""

    data_axis_size: int = -1
    """Size of the data axis. -1: chosen automatically."""

    fsdp_axis_size: int = -1
    """Size of the FSDP axis. -1: chosen automatically."""

    pipeline_axis_size: int = -1
    """Size of the pipeline axis. -1: chosen automatically."""

    model_axis_size: int = -1
    """Size of the tensor-parallel axis. -1: chosen automatically."""

    fsdp_min_weight_size: int = 16384
    """Minimum number of elements for a parameter to be sharded over the FSDP axis, if that axis is used. Smaller
    parameters are replicated. 0: all parameters are sharded."""

    headroom: float = field(default=0.1, metadata=affects(LAYOUT))
    """Fraction of the device memory that the layout must leave free, for memory that the plan does not predict."""

    def rules(self) -> Iterator[Problem]:
        """Check the name and the headroom too."""
        yield from super().rules()
        yield from own_name(self)
        yield from at_least(self, 0, "headroom")
        yield from below(self, 1, "headroom")

    def inference_rules(self) -> Iterator[Problem]:
        """Allow any number of sizes to be chosen."""
        yield from ()

    def is_open(self) -> bool:
        """Return True: the layout is always chosen later."""
        return True

    def axis_sizes(self, num_devices: int) -> dict[str, int]:
        """Return the size of each mesh axis as in any layout, with -1 for sizes still to be chosen."""
        super().axis_sizes(num_devices)  # raises if the given sizes cannot be kept
        return dict(zip(self.axis_names(), self.sizes().values(), strict=True))
