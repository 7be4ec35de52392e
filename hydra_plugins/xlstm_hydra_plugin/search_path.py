"""Plugin that adds the folder `conf/` of xlstm_hydra to the search path of every Hydra app."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class XlstmSearchPathPlugin(SearchPathPlugin):
    """Appends `conf/` to the search path, after the app's own sources."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append `conf/` to the search path."""
        from xlstm_hydra.conf_dir import conf_dir

        search_path.append(provider="xlstm-hydra", path=f"xlstm://{conf_dir()}")
