"""Generate the pages of the groups while the site is built: `reference/groups.md` and one page for each group."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from xlstm_hydra.reference import Catalog, group_page, groups_page, page_names


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    catalog = Catalog()
    pages = {name: group_page(catalog, group) for group, name in page_names(catalog).items()}
    for name, content in {"groups.md": groups_page(catalog), **pages}.items():
        path = f"reference/{name}"
        if (old := files.get_file_from_path(path)) is not None:
            files.remove(old)
        files.append(File.generated(config, path, content=content))
    return files
