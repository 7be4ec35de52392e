"""The reference of all config groups, options and fields, read from the code and the files in `conf/`."""

from ._catalog import Catalog as Catalog
from ._catalog import FieldEntry as FieldEntry
from ._info import info as info
from ._json_schema import schema_dir as schema_dir
from ._json_schema import schemas as schemas
from ._json_schema import write_schemas as write_schemas
from ._pages import group_page as group_page
from ._pages import groups_table as groups_table
from ._pages import page_names as page_names
from ._read_rules import rules_of as rules_of
