"""Saved runs as config sources: `hydra.searchpath=[ckpt:///runs/a@2000]`, then `model=ckpt` or `+from=ckpt`.

With `?lenient` after the address, unknown fields of the metadata are ignored, with a warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hydra.core.object_type import ObjectType
from hydra.errors import SearchPathException
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource

if TYPE_CHECKING:
    from xlstm_hydra.hydra import SavedOptions


class CheckpointConfigSource(ConfigSource):
    """The groups in the metadata of a checkpoint, each with an option `ckpt`, and `ckpt@STEP` for other checkpoints of
    the run. `from` selects all groups at once."""

    _found: SavedOptions | None = None

    @staticmethod
    def scheme() -> str:
        """`ckpt://`."""
        return "ckpt"

    def available(self) -> bool:
        """True if the checkpoint exists and can be read."""
        try:
            return bool(self.options)
        except SearchPathException:
            return False

    def is_group(self, config_path: str) -> bool:
        """True if there are options below this path."""
        return any(True for _ in self._below(config_path))

    def is_config(self, config_path: str) -> bool:
        """True if this option exists."""
        return config_path.removesuffix(".yaml") in self.options.paths

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Groups and options directly below a path."""
        below = list(self._below(config_path))
        groups = {rest.partition("/")[0] for rest in below if "/" in rest}
        configs = {rest for rest in below if "/" not in rest}
        return sorted({ObjectType.GROUP: groups, ObjectType.CONFIG: configs, None: groups | configs}[results_filter])

    def load_config(self, config_path: str) -> ConfigResult:
        """Make an option from the metadata of the checkpoint."""
        path = config_path.removesuffix(".yaml")
        if path not in self.options.paths:
            raise ConfigLoadError(f"there is no {path} in {self.full_path()}")
        try:
            config, package = self.options.load(path)
        except ValueError as error:
            raise _one_line(error) from None
        return ConfigResult(config=config, path=self.full_path(), provider=self.provider, header={"package": package})

    @property
    def options(self) -> SavedOptions:
        """Options of the checkpoint, read on first use."""
        if self._found is None:
            from xlstm_hydra.hydra import SavedOptions

            try:
                self._found = SavedOptions.at(self.path, "hydra.searchpath")
            except ValueError as error:
                raise _one_line(error) from None
        return self._found

    def _below(self, path: str) -> Iterator[str]:
        """Yield the rest of every path below this one."""
        start = f"{path.strip('/')}/".lstrip("/")
        return (other.removeprefix(start) for other in self.options.paths if other.startswith(start))


def _one_line(error: Exception) -> SearchPathException:
    """An error that Hydra prints without a traceback."""
    return SearchPathException(" ".join(str(error).split()))
