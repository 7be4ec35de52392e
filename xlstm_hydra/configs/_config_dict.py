"""`ConfigDict`: the base class of all configs. It checks their rules and converts them to and from plain JSON
values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, dataclass_transform

from xlstm_hydra.codec import Flags, decode, encode, register_class, same_fields, types_first
from xlstm_hydra.problems import ConfigError, Problem

T = TypeVar("T")

OPTIONS: dict[str, type[ConfigDict]] = {}
"""Config classes of this package that are schemas of the options in `conf`, by their name in a defaults list."""


@dataclass_transform(kw_only_default=True, field_specifiers=(field,))
def config_dataclass(cls: type[T]) -> type[T]:
    """Make a subclass of `ConfigDict` a dataclass with keyword arguments, as `@dataclass(kw_only=True)` would.

    No `__eq__` and `__repr__` are generated, because `ConfigDict` defines them for all configs. Generating them would
    take a third of the time needed to import all configs."""
    return dataclass(kw_only=True, eq=False, repr=False)(cls)


@register_class
@config_dataclass
class ConfigDict:
    """Base class of every config. Subclasses are dataclasses. Their method `rules` checks relations between fields, and
    the metadata of each field, set with `affects`, declares what a change of the field affects.

    Two configs are equal if they have the same class and equal values in all fields, where NaN equals NaN, a class
    equals its dotted path, `jnp.bfloat16` equals its dtype, and a list equals a tuple if the annotation is a tuple.

    Raises:
        ConfigError: when an instance is created, with every value of a wrong type and every broken rule between the
            other values. An int is accepted for a float, an integral float for an int, and a tuple for a list."""

    def __init_subclass__(cls, schema: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        name = schema or cls.__dict__.get("name")
        if isinstance(name, str) and cls.__module__.startswith(__name__.rpartition(".")[0]):
            OPTIONS[name] = cls
        # @dataclass generates no __eq__ for a class that defines its own.
        if "__eq__" not in cls.__dict__:
            cls.__eq__ = ConfigDict.__eq__
        if "__post_init__" in cls.__dict__:
            cls.__post_init__ = types_first(cls.__post_init__)

    @types_first
    def __post_init__(self) -> None:
        if problems := list(self.rules()):
            raise ConfigError(problems)

    def __eq__(self, other: object) -> bool:
        return same_fields(self, other) if type(self) is type(other) else NotImplemented

    def __repr__(self) -> str:
        values = (f"{each.name}={getattr(self, each.name)!r}" for each in fields(self) if each.repr)
        return f"{type(self).__qualname__}({', '.join(values)})"

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def rules(self) -> Iterator[Problem]:
        """Yield every broken rule between the fields of this config."""
        yield from ()

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a field or property, or `default` if there is no field or property of that name."""
        is_value = key in self.__dataclass_fields__ or isinstance(getattr(type(self), key, None), property)
        return getattr(self, key, default) if is_value else default

    def to_dict(self) -> dict[str, Any]:
        """Return this config as plain JSON values. `from_dict(type(self), self.to_dict()) == self`.

        Non-finite floats become `"nan"`, `"inf"`, `"-inf"`; dtypes, enums, paths and classes become strings.

        Raises:
            ConfigError: a value cannot be converted, such as an array. The message contains the path of its field.
        """
        return encode(self, type(self))

    @staticmethod
    def from_dict(
        config_class: type[T],
        data: Mapping[str, Any],
        strict_classname_parsing: bool = False,
        ignore_extensive_attributes: bool = True,
        none_to_zero_for_ints: bool = False,
    ) -> T:
        """Read plain data as a `config_class`, including nested dataclasses. The flags apply at every level.

        Strings are converted to the type of the field. Accepted strings are the `repr` of a dataclass, list, tuple or
        dict, any spelling of a dtype, and 'None' for null. A field that may contain a string keeps every string, even
        'None'; but the dtype fields of this package, such as `gate_dtype`, accept any spelling of a dtype.

        Args:
            config_class: any dataclass.
            data: the output of `to_dict`, or the same data with numbers or other values written as strings.
            strict_classname_parsing: accept classes and dtypes only in the form `<class 'a.B'>`.
            ignore_extensive_attributes: ignore fields that the class does not have. False: such fields are errors.
            none_to_zero_for_ints: read None as 0 where an int is expected.

        Raises:
            ConfigError: a field is wrong, missing or (unless ignored) unknown. The message contains the path of each
                such field."""
        flags = Flags(
            strict_classnames=strict_classname_parsing,
            ignore_unknown=ignore_extensive_attributes,
            none_to_zero=none_to_zero_for_ints,
        )
        return decode(config_class, data, flags)
