"""`ParallelConfig` -> mesh, partition specs, and the collectives that use them. Free of any model framework."""

from ._axes import Axes as Axes
from ._axes import vary_like as vary_like
from ._axes import vary_over as vary_over
from ._axes import varying_axes as varying_axes
from ._fsdp import gather_parameter as gather_parameter
from ._mesh import assign_devices as assign_devices
from ._mesh import axes_across_hosts as axes_across_hosts
from ._mesh import batch_axes as batch_axes
from ._mesh import batch_spec as batch_spec
from ._mesh import build_mesh as build_mesh
from ._mesh import describe_mesh as describe_mesh
from ._mesh import mesh_axes as mesh_axes
from ._placement import LAYERS as LAYERS
from ._placement import TENSOR_AXIS as TENSOR_AXIS
from ._placement import Parameter as Parameter
from ._placement import Placement as Placement
from ._placement import place as place
from ._report import report as report
from ._report import summary as summary
