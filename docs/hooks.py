"""Generate the field reference while the site is built: the table of groups, and a page for each group."""

from __future__ import annotations

from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from xlstm_hydra.reference import Catalog, group_page, groups_table, page_names


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the groups."""
    catalog = Catalog()
    for group, name in page_names(catalog).items():
        files.append(File.generated(config, f"reference/{name}", content=group_page(catalog, group)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Insert the table of groups where a page asks for it."""
    return markdown.replace("<!-- groups -->", groups_table(Catalog()))
