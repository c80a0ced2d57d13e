"""The fused depthwise-separable convolution under pytest-benchmark; see conftest.py."""

OPERATORS = ("separable",)


def test_separable(timed):
    timed()
