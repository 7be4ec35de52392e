"""The folder `conf/` and the schemas of its options, seen from any Hydra app."""

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from xlstm_hydra.conf_dir import current_option

SCHEMAS = "xlstm_hydra/schema/"


class XlstmConfigSource(FileConfigSource):
    """YAML files that step back where the app has registered a config of the same name.

    Hydra looks through files before it looks in the ConfigStore, so plain files of ours would take the place of another
    app's own `config` or `optimizer/adamw`. Schemas are made when one of our files asks for them: an app that uses none
    of ours pays for none, and its ConfigStore stays as it is.
    """

    @staticmethod
    def scheme() -> str:
        """`xlstm://`."""
        return "xlstm"

    def is_config(self, config_path: str) -> bool:
        """Whether we have this config and the app does not."""
        path = config_path.rstrip("/")
        if ConfigStore.instance().get_type(self._normalize_file_name(path)) == ObjectType.CONFIG:
            return False
        return _schema(path) is not None or super().is_config(current_option(path))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """What a folder holds, without the folder that only our own files refer to."""
        return [name for name in super().list(config_path, results_filter) if name != "xlstm_hydra"]

    def load_config(self, config_path: str) -> ConfigResult:
        """A schema, or a YAML file, which is put on top of its schema here where that is its whole defaults list.

        That is what Hydra would do with the list, which costs it 2 ms each.
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
