"""Plain JSON values <-> typed values: everything that other modules need of it."""

from ._decode import collect as collect
from ._decode import decode as decode
from ._encode import encode as encode
from ._encode import encode_fields as encode_fields
from ._encode import same as same
from ._encode import same_fields as same_fields
from ._hints import TAG as TAG
from ._hints import dotted as dotted
from ._hints import register_class as register_class
from ._partial import partial as partial
from ._partial import unchecked as unchecked
from ._scalars import Flags as Flags
from ._scalars import plain_dtypes as plain_dtypes
