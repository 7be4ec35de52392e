"""The field reference: every group, option and field, read from the code and the files in `conf/`."""

from ._catalog import Catalog as Catalog
from ._catalog import FieldEntry as FieldEntry
from ._info import info as info
