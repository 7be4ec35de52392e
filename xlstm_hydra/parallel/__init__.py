"""`ParallelConfig` -> mesh, partition specs, and the collectives that use them. Free of any model framework."""

from ._axes import Axes as Axes
from ._axes import vary_like as vary_like
from ._axes import vary_over as vary_over
from ._axes import varying_axes as varying_axes
from ._collective_matmul import Pieces as Pieces
from ._collective_matmul import column_matmul as column_matmul
from ._collective_matmul import gather_stream as gather_stream
from ._collective_matmul import row_matmul as row_matmul
from ._collectives import Collective as Collective
from ._collectives import list_collectives as list_collectives
from ._fsdp import gather_parameter as gather_parameter
from ._mesh import batch_axes as batch_axes
from ._mesh import batch_spec as batch_spec
from ._mesh import build_mesh as build_mesh
from ._mesh import describe_mesh as describe_mesh
from ._mesh import mesh_axes as mesh_axes
from ._pipeline import bubble_fraction as bubble_fraction
from ._pipeline import run_pipeline as run_pipeline
from ._placement import ARRAY_AXES as ARRAY_AXES
from ._placement import LAYERS as LAYERS
from ._placement import Parameter as Parameter
from ._placement import Placement as Placement
from ._placement import place as place
from ._report import report as report
from ._report import summary as summary
