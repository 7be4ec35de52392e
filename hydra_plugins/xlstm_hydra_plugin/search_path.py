"""Our `conf/` in the search path of every Hydra app."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class XlstmSearchPathPlugin(SearchPathPlugin):
    """Appends our `conf/` after the app's own files."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """See the class."""
        from xlstm_hydra.conf_dir import conf_dir

        search_path.append(provider="xlstm-hydra", path=f"xlstm://{conf_dir()}")
