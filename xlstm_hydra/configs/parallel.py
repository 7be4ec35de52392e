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
"""Floating-point data types for computation and communication."""

_SIZES = ("data_axis_size", "fsdp_axis_size", "pipeline_axis_size", "model_axis_size")
_NAMES = ("data_axis_name", "fsdp_axis_name", "pipeline_axis_name", "model_axis_name")


@config_dataclass
class ParallelConfig(ConfigDict, schema="parallel"):
    """The layout over devices: sizes and names of the mesh axes, sharding, and recomputation.

    The product of the four mesh axis sizes must equal the number of devices."""

    data_axis_size: int = field(default=-1, metadata=affects(LAYOUT))
    """Size of the data mesh axis, along which devices process different examples with the same parameters. -1: the
    number of devices divided by the other sizes."""

    fsdp_axis_size: int = field(default=1, metadata=affects(LAYOUT))
    """Size of the FSDP mesh axis, over which parameters, gradients and optimizer moments are sharded, and along which
    devices process different examples. -1: the number of devices divided by the other sizes. 1: no sharding of
    parameters."""

    pipeline_axis_size: int = field(default=1, metadata=affects(LAYOUT))
    """Size of the pipeline mesh axis: the number of stages into which the stack of blocks is divided. -1: the number of
    devices divided by the other sizes. 1: no pipeline."""

    model_axis_size: int = field(default=1, metadata=affects(LAYOUT))
    """Size of the tensor-parallel mesh axis, over which heads, channels and vocabulary are divided. -1: the number of
    devices divided by the other sizes. 1: no tensor parallelism."""

    data_axis_name: str = field(default="dp", metadata=affects(LAYOUT))
    """Name of the data mesh axis in partition specs and reports."""

    fsdp_axis_name: str = field(default="fsdp", metadata=affects(LAYOUT))
    """Name of the FSDP mesh axis in partition specs and reports."""

    pipeline_axis_name: str = field(default="pp", metadata=affects(LAYOUT))
    """Name of the pipeline mesh axis in partition specs and reports."""

    model_axis_name: str = field(default="tp", metadata=affects(LAYOUT))
    """Name of the tensor-parallel mesh axis in partition specs and reports."""

    remat: list[str] = field(default_factory=list, metadata=affects(LAYOUT))
    """Class names of the modules whose activations are recomputed in the backward pass. Empty: all activations are
    stored."""

    fsdp_modules: list[str] = field(default_factory=list, metadata=affects(LAYOUT))
    """Class names of the modules whose parameters are sharded over the FSDP axis. Empty: no parameters are sharded. If
    the axis has size 1, no parameters are sharded either, and the run logs this."""

    fsdp_min_weight_size: int = field(default=262144, metadata=affects(LAYOUT))
    """Minimum number of elements for a parameter to be sharded over the FSDP axis, counted per block and per
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
                yield Problem(
                    {name: value}, "an axis name must consist of letters, digits and _, and must not start with a digit"
                )
        if len(set(names.values())) < len(names):
            twice = {key: value for key, value in names.items() if list(names.values()).count(value) > 1}
            yield Problem(twice, "axis names must differ", "The defaults are dp, fsdp, pp and tp.")
        if self.fsdp_min_weight_size < 0:
            yield Problem({"fsdp_min_weight_size": self.fsdp_min_weight_size}, "must be 0 or more")
        yield from one_of(self, "fsdp_gather_dtype", DTYPES, optional=True)
        yield from one_of(self, "fsdp_grad_scatter_dtype", DTYPES, optional=True)

    def size_rules(self) -> Iterator[Problem]:
        """Check the mesh axis sizes without knowing the number of devices."""
        for name, size in self.sizes().items():
            if size < 1 and size != -1:
                yield Problem({name: size}, "an axis size must be positive, or -1 to be inferred")
        yield from self.inference_rules()

    def inference_rules(self) -> Iterator[Problem]:
        """Check that at most one mesh axis size is -1."""
        inferred = {name: size for name, size in self.sizes().items() if size == -1}
        if len(inferred) > 1:
            keep = "{" + next(iter(inferred)) + "}"
            yield Problem(inferred, "at most one axis size can be -1", f"Keep only {keep}=-1, and set the other sizes.")

    def module_name_rules(self, known: tuple[str, ...]) -> Iterator[Problem]:
        """Check that `remat` and `fsdp_modules` contain only module classes of the model. Keys in problems are
        absolute."""
        for key in ("remat", "fsdp_modules"):
            named = self.get(key)
            for name in named:
                if name not in known:
                    hint = nearest(name, known)
                    fix = hint if hint.startswith("Known") else f"{hint} Known: {', '.join(known)}."
                    neutral = {f"parallel.{key}": [other for other in named if other in known]}
                    yield Problem({f"parallel.{key}": name}, "not a module class of this model", fix, unused=neutral)

    def task_rules(self, task: str) -> Iterator[Problem]:
        """Check that parallel=auto is used only for training and plans. Keys in problems are absolute."""
        if self.is_open() and task not in ("train", "plan"):
            given = {"parallel.name": self.get("name"), "task.name": task}
            rule = "parallel=auto chooses a layout for training only"
            yield Problem(given, rule, "Choose a layout, such as parallel=dp or parallel=fsdp.")

    def unused_fsdp_rules(self) -> Iterator[Problem]:
        """Check that the FSDP settings are left at their defaults if `fsdp_modules` is empty. Keys in problems are
        absolute."""
        default = ParallelConfig()
        changed = {
            key: self.get(key)
            for key in ("fsdp_gather_dtype", "fsdp_grad_scatter_dtype", "fsdp_min_weight_size")
            if self.get(key) != default.get(key)
        }
        if changed and not self.fsdp_modules and not self.is_open():
            rule = "nothing is sharded or gathered, because parallel.fsdp_modules is empty"
            fix = f"Add modules to it, or leave this setting at {either(show(default.get(key)) for key in changed)}."
            neutral = {f"parallel.{key}": default.get(key) for key in changed}
            yield Problem({f"parallel.{key}": value for key, value in changed.items()}, rule, fix, unused=neutral)

    def unused_axis_rules(self, size_key: str, *keys: str) -> Iterator[Problem]:
        """Check that the fields `keys` are left at their defaults, because the mesh axis size in `size_key` is 1. Keys
        in problems are absolute."""
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
        """Return the four mesh axis sizes by field name, in mesh order."""
        return {name: getattr(self, name) for name in _SIZES}

    def known_size(self) -> int:
        """Return the product of the mesh axis sizes that are not -1."""
        return math.prod(size for size in self.sizes().values() if size != -1)

    def usable_near(self, num_devices: int) -> list[int]:
        """Return the numbers of devices closest to `num_devices` that the mesh axis sizes allow."""
        known = self.known_size()
        if -1 not in self.sizes().values():
            return [known]
        lower = num_devices // known * known
        return [number for number in (lower, lower + known) if number > 0]

    def axis_names(self) -> tuple[str, str, str, str]:
        """Return the four mesh axis names, in mesh order."""
        return (self.data_axis_name, self.fsdp_axis_name, self.pipeline_axis_name, self.model_axis_name)

    def busiest_axes(self) -> tuple[str, str, str, str]:
        """Return the four mesh axis names in decreasing order of communication. The devices along the first axis should
        be closest together."""
        return (self.model_axis_name, self.fsdp_axis_name, self.pipeline_axis_name, self.data_axis_name)

    def axis_sizes(self, num_devices: int) -> dict[str, int]:
        """Return the size of each mesh axis by axis name, in mesh order, with -1 replaced by the inferred size.

        Raises:
            ConfigError: the product of the sizes cannot be `num_devices`. Keys in problems are relative to this
                config."""
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
    """The layout with the best predicted speed among those that fit in device memory.

    The layout is chosen when the number and kind of the devices are known. Settings that change the results, such as
    the batch size and data types, are never changed. `remat` and `fsdp_modules` are chosen if they are empty,
    `trainer.pipeline_microbatches` if it is null, and `trainer.gradient_accumulate_steps` if it is 1. Settings of mesh
    axes that get size 1 are dropped."""

    name: str = field(default="auto", metadata=affects(LAYOUT))
    """Name of the layout: auto."""

    data_axis_size: int = -1
    """Size of the data mesh axis. -1: chosen automatically."""

    fsdp_axis_size: int = -1
    """Size of the FSDP mesh axis. -1: chosen automatically."""

    pipeline_axis_size: int = -1
    """Size of the pipeline mesh axis. -1: chosen automatically."""

    model_axis_size: int = -1
    """Size of the tensor-parallel mesh axis. -1: chosen automatically."""

    fsdp_min_weight_size: int = 16384
    """Minimum number of elements for a parameter to be sharded over the FSDP axis, counted per block and per
    tensor-parallel device. Smaller parameters are replicated. 0: all parameters are sharded. No effect if the chosen
    layout has an FSDP axis of size 1."""

    headroom: float = field(default=0.1, metadata=affects(LAYOUT))
    """Fraction of the device memory that the layout must leave free, for memory that the plan does not predict; at
    least 0 and below 1."""

    def rules(self) -> Iterator[Problem]:
        """Check the fields of every layout, the name and the headroom."""
        yield from super().rules()
        yield from own_name(self)
        yield from at_least(self, 0, "headroom")
        yield from below(self, 1, "headroom")

    def inference_rules(self) -> Iterator[Problem]:
        """Allow more than one size to be -1."""
        yield from ()

    def is_open(self) -> bool:
        """Return True: the layout is always chosen later."""
        return True

    def axis_sizes(self, num_devices: int) -> dict[str, int]:
        """Return the size of each mesh axis by axis name, in mesh order, with -1 for sizes that are not chosen yet.

        Raises:
            ConfigError: the product of the sizes cannot be `num_devices`."""
        super().axis_sizes(num_devices)  # raises if the sizes other than -1 are impossible
        return dict(zip(self.axis_names(), self.sizes().values(), strict=True))
