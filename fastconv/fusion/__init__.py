"""Surgery on trained models: depthwise(-norm)(-activation)-pointwise(-norm)(-activation) chains run as fused operators."""

from .convert import fuse
from .report import FuseReport

__all__ = ["FuseReport", "fuse"]
