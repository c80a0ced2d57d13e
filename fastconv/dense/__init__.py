"""Dense prediction, exactly: strided networks made dense, evaluated on all shifts, or on tiles of a large image."""

from .convert import to_dense
from .model import DenseModel

__all__ = ["DenseModel", "to_dense"]
