"""How a run is laid out over devices."""

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
"""The floating-point types that a run can compute and communicate in."""

_SIZES = ("data_axis_size", "fsdp_axis_size", "pipeline_axis_size", "model_axis_size")
_NAMES = ("data_axis_name", "fsdp_axis_name", "pipeline_axis_name", "model_axis_name")


@config_dataclass
class ParallelConfig(ConfigDict, schema="parallel"):
    """Sizes and names of the mesh axes, and what is sharded, gathered and recomputed along them.

    The product of the four sizes is the number of devices.
    """

    data_axis_size: int = field(default=-1, metadata=affects(LAYOUT))
    """Replicas that see different examples and hold the same parameters. -1: whatever devices the other axes leave."""

    fsdp_axis_size: int = field(default=1, metadata=affects(LAYOUT))
    """Devices that see different examples and share every sharded parameter, gradient and optimizer moment.
    -1: whatever devices the other axes leave. 1: parameters are whole on each replica."""

    pipeline_axis_size: int = field(default=1, metadata=affects(LAYOUT))
    """Stages that the stack of blocks is cut into. -1: whatever devices the other axes leave. 1: no pipeline."""

    model_axis_size: int = field(default=1, metadata=affects(LAYOUT))
    """Devices that share the heads, channels and vocabulary of one model (tensor parallelism).
    -1: whatever devices the other axes leave. 1: no tensor parallelism."""

    data_axis_name: str = field(default="dp", metadata=affects(LAYOUT))
    """Name of the data mesh axis, as it appears in partition specs and reports."""

    fsdp_axis_name: str = field(default="fsdp", metadata=affects(LAYOUT))
    """Name of the FSDP mesh axis."""

    pipeline_axis_name: str = field(default="pp", metadata=affects(LAYOUT))
    """Name of the pipeline mesh axis."""

    model_axis_name: str = field(default="tp", metadata=affects(LAYOUT))
    """Name of the tensor-parallel mesh axis."""

    remat: list[str] = field(default_factory=list, metadata=affects(LAYOUT))
    """Class names of the modules whose activations are recomputed in the backward pass. Empty: all are kept."""

    fsdp_modules: list[str] = field(default_factory=list, metadata=affects(LAYOUT))
    """Class names of the modules whose parameters are sharded over the FSDP axis. Empty: none are. Where that axis has
    one device nothing is sharded, and the run says so."""

    fsdp_min_weight_size: int = field(default=262144, metadata=affects(LAYOUT))
    """Elements (of one block's array, on one tensor-parallel device) that a parameter needs to be sharded over the FSDP
    axis; a smaller one stays whole. 0: every parameter is sharded."""

    fsdp_gather_dtype: str | None = field(default=None, metadata=affects(NUMERICS))
    """Type that a sharded parameter is cast to before its all-gather. null: no cast."""

    fsdp_grad_scatter_dtype: str | None = field(default=None, metadata=affects(NUMERICS))
    """Type that the gradient of a sharded parameter is cast to before its reduce-scatter. null: the parameter's
    type."""

    tp_async_dense: bool = field(default=False, metadata=affects(LAYOUT))
    """Overlap the communication of tensor-parallel dense layers with their computation (collective matmul)."""

    def __post_init__(self) -> None:
        plain_dtypes(self)
        super().__post_init__()

    def rules(self) -> Iterator[Problem]:
        """Sizes, names and types, each on its own."""
        yield from self.size_rules()
        names = {name: getattr(self, name) for name in _NAMES}
        for name, value in names.items():
            if not value.isidentifier():
                yield Problem({name: value}, "an axis name is a word of letters, digits and _")
        if len(set(names.values())) < len(names):
            twice = {key: value for key, value in names.items() if list(names.values()).count(value) > 1}
            yield Problem(twice, "axis names must differ", "The defaults are dp, fsdp, pp and tp.")
        if self.fsdp_min_weight_size < 0:
            yield Problem({"fsdp_min_weight_size": self.fsdp_min_weight_size}, "must be 0 or more")
        yield from one_of(self, "fsdp_gather_dtype", DTYPES, optional=True)
        yield from one_of(self, "fsdp_grad_scatter_dtype", DTYPES, optional=True)

    def size_rules(self) -> Iterator[Problem]:
        """Sizes on their own, without the number of devices."""
        for name, size in self.sizes().items():
            if size < 1 and size != -1:
                yield Problem({name: size}, "an axis size is positive, or -1 to be inferred")
        yield from self.inference_rules()

    def inference_rules(self) -> Iterator[Problem]:
        """How many sizes can be left to be inferred."""
        inferred = {name: size for name, size in self.sizes().items() if size == -1}
        if len(inferred) > 1:
            keep = "{" + next(iter(inferred)) + "}"
            yield Problem(
                inferred, "at most one axis size can be -1", f"Give all but one a number, or keep only {keep}=-1."
            )

    def module_name_rules(self, known: tuple[str, ...]) -> Iterator[Problem]:
        """The rule that `remat` and `fsdp_modules` name module classes that the model has. Keys are whole."""
        for key in ("remat", "fsdp_modules"):
            named = self.get(key)
            for name in named:
                if name not in known:
                    hint = nearest(name, known)
                    fix = hint if hint.startswith("Known") else f"{hint} Known: {', '.join(known)}."
                    neutral = {f"parallel.{key}": [other for other in named if other in known]}
                    yield Problem({f"parallel.{key}": name}, "no module class of this model", fix, unused=neutral)

    def task_rules(self, task: str) -> Iterator[Problem]:
        """The rule that a layout which is still to be chosen is one for training. Keys are whole."""
        if self.is_open() and task not in ("train", "plan"):
            given = {"parallel.name": self.get("name"), "task.name": task}
            rule = "a layout is chosen by what a step of training takes"
            yield Problem(given, rule, "Choose one, such as parallel=dp or parallel=fsdp.")

    def unused_fsdp_rules(self) -> Iterator[Problem]:
        """The rule that how parameters are sharded is left at its defaults where no module's are. Keys are whole."""
        default = ParallelConfig()
        changed = {
            key: self.get(key)
            for key in ("fsdp_gather_dtype", "fsdp_grad_scatter_dtype", "fsdp_min_weight_size")
            if self.get(key) != default.get(key)
        }
        if changed and not self.fsdp_modules and not self.is_open():
            rule = "nothing is sharded or gathered, because parallel.fsdp_modules is empty"
            fix = f"Name modules there, or leave this at {either(show(default.get(key)) for key in changed)}."
            neutral = {f"parallel.{key}": default.get(key) for key in changed}
            yield Problem({f"parallel.{key}": value for key, value in changed.items()}, rule, fix, unused=neutral)

    def unused_axis_rules(self, size_key: str, *keys: str) -> Iterator[Problem]:
        """The rule that settings of a mesh axis are left at their defaults where it has one device. Keys are whole."""
        given = {f"parallel.{key}": self.get(key) for key in keys if self.get(key)}
        if given:
            size = self.get(size_key)
            rule = f"there is nothing to exchange where parallel.{size_key} is 1"
            if size == -1:
                rule += ", as it is inferred to be"
            default = ParallelConfig()
            neutral = {f"parallel.{key}": default.get(key) for key in keys if self.get(key)}
            yield Problem(given, rule, f"Set parallel.{size_key} to 2 or more, or leave this away.", unused=neutral)

    def is_open(self) -> bool:
        """Whether the layout is still to be chosen, once the devices are known."""
        return False

    def sizes(self) -> dict[str, int]:
        """The four sizes by field name, in mesh order."""
        return {name: getattr(self, name) for name in _SIZES}

    def known_size(self) -> int:
        """The product of the sizes that are not inferred."""
        return math.prod(size for size in self.sizes().values() if size != -1)

    def usable_near(self, num_devices: int) -> list[int]:
        """The numbers of devices next to this one that the sizes can multiply to."""
        known = self.known_size()
        if -1 not in self.sizes().values():
            return [known]
        lower = num_devices // known * known
        return [number for number in (lower, lower + known) if number > 0]

    def axis_names(self) -> tuple[str, str, str, str]:
        """The four axis names, in mesh order."""
        return (self.data_axis_name, self.fsdp_axis_name, self.pipeline_axis_name, self.model_axis_name)

    def busiest_axes(self) -> tuple[str, str, str, str]:
        """The four axis names from the one that communicates most, whose devices should be neighbours, to the least."""
        return (self.model_axis_name, self.fsdp_axis_name, self.pipeline_axis_name, self.data_axis_name)

    def axis_sizes(self, num_devices: int) -> dict[str, int]:
        """The size of each mesh axis by its name, in mesh order, with -1 replaced.

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
    """The layout that is predicted to be the fastest of those that the devices allow and have the memory for.

    It is chosen when the number and kind of the devices is known, and the run is then one with that layout. What
    changes the results is never chosen: the batch and all types stay as they are. `remat` and `fsdp_modules` are kept
    where they name modules, and chosen where they are empty, and so are `trainer.pipeline_microbatches` where it is
    null and `trainer.gradient_accumulate_steps` where it is 1. Settings of a mesh axis that is chosen to have one
    device are left away.
    """

    name: str = field(default="auto", metadata=affects(LAYOUT))
    """Says that the layout is to be chosen."""

    data_axis_size: int = -1
    """As in a layout. -1: chosen."""

    fsdp_axis_size: int = -1
    """As in a layout. -1: chosen."""

    pipeline_axis_size: int = -1
    """As in a layout. -1: chosen."""

    model_axis_size: int = -1
    """As in a layout. -1: chosen."""

    fsdp_min_weight_size: int = 16384
    """As in a layout, where one with FSDP is chosen."""

    headroom: float = field(default=0.1, metadata=affects(LAYOUT))
    """Share of the devices' memory that the layout must leave free, for what a plan does not see."""

    def rules(self) -> Iterator[Problem]:
        """Also its name, and a share below 1."""
        yield from super().rules()
        yield from own_name(self)
        yield from at_least(self, 0, "headroom")
        yield from below(self, 1, "headroom")

    def inference_rules(self) -> Iterator[Problem]:
        """Any number of sizes can be chosen."""
        yield from ()

    def is_open(self) -> bool:
        """It is."""
        return True

    def axis_sizes(self, num_devices: int) -> dict[str, int]:
        """As of any layout, but a size that is still to be chosen is -1."""
        super().axis_sizes(num_devices)  # whether those that are given can be kept
        return dict(zip(self.axis_names(), self.sizes().values(), strict=True))
