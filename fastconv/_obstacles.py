"""Why layers that people put into networks cannot be taken apart position by position, in the words of the refusal."""

KEEP_GRID = frozenset({"GroupNorm", "InstanceNorm2d", "group_norm", "instance_norm"})
_RESAMPLES = "resamples the map, which has no exact dense form"
_SEQUENCE = "rearranges positions into other axes"
WHOLE_MAP_MODULES = {
    "GroupNorm": "normalises by statistics of the whole map",
    "InstanceNorm2d": "normalises by statistics of the whole map",
    "Upsample": _RESAMPLES,
    "UpsamplingBilinear2d": _RESAMPLES,
    "UpsamplingNearest2d": _RESAMPLES,
    "ConvTranspose2d": "is a transposed convolution, " + _RESAMPLES,
    "PixelShuffle": _SEQUENCE,
    "PixelUnshuffle": _SEQUENCE,
    "Flatten": "flattens positions into a vector",
    "MultiheadAttention": "lets every position attend to every other",
}
WHOLE_MAP_FUNCTIONS = {
    "group_norm": "normalises by statistics of the whole map",
    "instance_norm": "normalises by statistics of the whole map",
    "interpolate": _RESAMPLES,
    "conv_transpose2d": _RESAMPLES,
    "pixel_shuffle": _SEQUENCE,
    "pixel_unshuffle": _SEQUENCE,
    "flatten": "flattens positions into a vector",
    "view": _SEQUENCE,
    "reshape": _SEQUENCE,
    "roll": "moves rows or columns around the edge",
    "matmul": "multiplies maps as matrices, which mixes positions",
    "scaled_dot_product_attention": "lets every position attend to every other",
}
