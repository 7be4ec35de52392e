"""The folder `conf/`, seen from another app."""

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType


class XlstmConfigSource(FileConfigSource):
    """YAML files that step back where the app has registered a config of the same name.

    Hydra looks through files before it looks in the ConfigStore, so plain files of ours would take the place of another
    app's own `config` or `optimizer/adamw`.
    """

    @staticmethod
    def scheme() -> str:
        """`xlstm://`."""
        return "xlstm"

    def is_config(self, config_path: str) -> bool:
        """Whether we have this config and the app does not."""
        name = self._normalize_file_name(config_path.rstrip("/"))
        return super().is_config(config_path) and ConfigStore.instance().get_type(name) != ObjectType.CONFIG
