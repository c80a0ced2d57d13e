"""Stitched pooling under pytest-benchmark; see conftest.py."""

OPERATORS = ("max_pool", "avg_pool")


def test_pool(timed):
    timed()
