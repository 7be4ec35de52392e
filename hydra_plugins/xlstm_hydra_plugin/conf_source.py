"""Config source with the folder `conf/` and the schemas of its options, for every Hydra app."""

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from xlstm_hydra.conf_dir import current_option

SCHEMAS = "xlstm_hydra/schema/"


class XlstmConfigSource(FileConfigSource):
    """Config source with the YAML files in `conf/`, except those with the same name as a config in the ConfigStore.

    Hydra searches file sources before the ConfigStore. If these files were not hidden, they would replace other apps'
    own configs, such as `config` or `optimizer/adamw`. Schemas are created on demand, when a file in `conf/` refers to
    them. Apps that do not use `conf/` are therefore not slowed down, and their ConfigStore is not modified.
    """

    @staticmethod
    def scheme() -> str:
        """URL scheme of this config source: `xlstm://`."""
        return "xlstm"

    def is_config(self, config_path: str) -> bool:
        """True if the config exists here and the app has not registered a config of this name."""
        path = config_path.rstrip("/")
        if ConfigStore.instance().get_type(self._normalize_file_name(path)) == ObjectType.CONFIG:
            return False
        return _schema(path) is not None or super().is_config(current_option(path))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """Return the groups and options in a folder, except the group `xlstm_hydra`, which contains the schemas."""
        return [name for name in super().list(config_path, results_filter) if name != "xlstm_hydra"]

    def load_config(self, config_path: str) -> ConfigResult:
        """Load a schema or a YAML file.

        If a file's defaults list contains only a schema, the file is merged into the schema here. Hydra would do the
        same, but needs 2 ms for each defaults list.
        """
        if (schema := _schema(config_path)) is not None:
            return ConfigResult(config=schema, path=self.full_path(), provider=self.provider, header={"package": None})
        result = super().load_config(current_option(config_path.removesuffix(".yaml")))
        match OmegaConf.select(result.config, "defaults"):
            case [str(base), "_self_"] if schema := _schema(base.removeprefix("/").removesuffix("@_here_")):
                del result.config["defaults"]
                result.config = OmegaConf.unsafe_merge(schema, result.config)  # the schema was created for this call
        return result


def _schema(config_path: str) -> DictConfig | None:
    if not config_path.startswith(SCHEMAS):
        return None
    from xlstm_hydra.hydra import register_resolvers, schema_node

    register_resolvers()
    return schema_node(config_path[len(SCHEMAS) :])
