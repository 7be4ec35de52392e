"""The folder `conf/` and the schemas of its options, available to every Hydra app."""

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from xlstm_hydra.conf_dir import current_option

SCHEMAS = "xlstm_hydra/schema/"


class XlstmConfigSource(FileConfigSource):
    """Our YAML files, except where the app has registered a config of the same name.

    Hydra searches files before the ConfigStore, so plain files of ours would replace another app's own `config` or
    `optimizer/adamw`. Schemas are created when one of our files refers to them: an app that uses none of our files
    spends no time on them, and its ConfigStore does not change.
    """

    @staticmethod
    def scheme() -> str:
        """`xlstm://`."""
        return "xlstm"

    def is_config(self, config_path: str) -> bool:
        """True if we have this config and the app does not."""
        path = config_path.rstrip("/")
        if ConfigStore.instance().get_type(self._normalize_file_name(path)) == ObjectType.CONFIG:
            return False
        return _schema(path) is not None or super().is_config(current_option(path))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Content of a folder, without the folder of the schemas."""
        return [name for name in super().list(config_path, results_filter) if name != "xlstm_hydra"]

    def load_config(self, config_path: str) -> ConfigResult:
        """Load a schema or a YAML file. A file whose defaults list only has its schema is merged into it here.

        Hydra would do the same, but takes 2 ms for each list.
        """
        if (schema := _schema(config_path)) is not None:
            return ConfigResult(config=schema, path=self.full_path(), provider=self.provider, header={"package": None})
        result = super().load_config(current_option(config_path.removesuffix(".yaml")))
        match OmegaConf.select(result.config, "defaults"):
            case [str(base), "_self_"] if schema := _schema(base.removeprefix("/").removesuffix("@_here_")):
                del result.config["defaults"]
                result.config = OmegaConf.unsafe_merge(schema, result.config)  # the schema is new: no copy is needed
        return result


def _schema(config_path: str) -> DictConfig | None:
    if not config_path.startswith(SCHEMAS):
        return None
    from xlstm_hydra.hydra import register_resolvers, schema_node

    register_resolvers()
    return schema_node(config_path[len(SCHEMAS) :])
