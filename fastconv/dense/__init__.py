"""Dense prediction, exactly: strided networks made dense, evaluated on all shifts, or on tiles of a large image."""

from ..spatial import NotConvertible
from .convert import to_dense
from .model import DenseModel
from .shifted import shift_and_stitch
from .tiles import tiled

__all__ = ["DenseModel", "NotConvertible", "shift_and_stitch", "tiled", "to_dense"]
