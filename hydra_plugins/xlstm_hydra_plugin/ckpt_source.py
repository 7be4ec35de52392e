"""Saved runs as config sources: `hydra.searchpath=[ckpt:///runs/a@2000]`, then `model=ckpt` or `+from=ckpt`.

If the address ends with `?lenient`, unknown fields in the metadata are ignored, with a warning.
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
    """Config source with the groups in a checkpoint's metadata.

    Each group has an option `ckpt`, and an option `ckpt@STEP` for each checkpoint of the same run. The group `from` has
    the same options, which select the saved config of every group at once.
    """

    _found: SavedOptions | None = None

    @staticmethod
    def scheme() -> str:
        """URL scheme of this config source: `ckpt://`."""
        return "ckpt"

    def available(self) -> bool:
        """True if the checkpoint exists and is readable."""
        try:
            return bool(self.options)
        except SearchPathException:
            return False

    def is_group(self, config_path: str) -> bool:
        """True if the path is a config group, that is, if there are options below it."""
        return any(True for _ in self._below(config_path))

    def is_config(self, config_path: str) -> bool:
        """True if the path is an option."""
        return config_path.removesuffix(".yaml") in self.options.paths

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return the names of the groups and options directly below a path."""
        below = list(self._below(config_path))
        groups = {rest.partition("/")[0] for rest in below if "/" in rest}
        configs = {rest for rest in below if "/" not in rest}
        return sorted({ObjectType.GROUP: groups, ObjectType.CONFIG: configs, None: groups | configs}[results_filter])

    def load_config(self, config_path: str) -> ConfigResult:
        """Return the config of an option, made from the checkpoint's metadata."""
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
        """Options of the saved run, read on first access."""
        if self._found is None:
            from xlstm_hydra.hydra import SavedOptions

            try:
                self._found = SavedOptions.at(self.path, "hydra.searchpath")
            except ValueError as error:
                raise _one_line(error) from None
        return self._found

    def _below(self, path: str) -> Iterator[str]:
        """Yield the path of every option below `path`, relative to it."""
        start = f"{path.strip('/')}/".lstrip("/")
        return (other.removeprefix(start) for other in self.options.paths if other.startswith(start))


def _one_line(error: Exception) -> SearchPathException:
    """Convert an error to one that Hydra prints in a single line, without a traceback."""
    return SearchPathException(" ".join(str(error).split()))
