"""The depthwise convolution alone under pytest-benchmark; see conftest.py."""

OPERATORS = ("depthwise",)


def test_depthwise(timed):
    timed()
