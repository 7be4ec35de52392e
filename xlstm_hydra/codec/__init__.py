"""Conversion between plain JSON values and dataclasses. No third-party package is imported."""

from ._construct import types_first as types_first
from ._decode import collect as collect
from ._decode import decode as decode
from ._encode import encode as encode
from ._encode import encode_fields as encode_fields
from ._encode import same as same
from ._encode import same_fields as same_fields
from ._hints import TAG as TAG
from ._hints import dotted as dotted
from ._hints import find_class as find_class
from ._hints import hints as hints
from ._hints import register_class as register_class
from ._hints import type_name as type_name
from ._partial import partial as partial
from ._partial import unchecked as unchecked
from ._reprs import Instance as Instance
from ._reprs import ReprError as ReprError
from ._reprs import class_in as class_in
from ._reprs import parse_repr as parse_repr
from ._scalars import MISSING as MISSING
from ._scalars import Flags as Flags
from ._scalars import plain_dtypes as plain_dtypes
from ._scalars import read_scalar as read_scalar
