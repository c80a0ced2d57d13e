"""Stands in for hypothesis on a machine without it, put on the path by bench/gpu.sh alone: tests of random examples are skipped, and say why."""

import pytest


class HealthCheck:
    function_scoped_fixture = too_slow = filter_too_much = data_too_large = None


def settings(*_, **__):
    return lambda test: test


def assume(_):
    return True


def given(*_, **__):
    def skip(test):
        # A wrapper without parameters: pytest would take the strategies' names for fixtures.
        def skipped():
            pytest.skip("hypothesis is not installed here")

        skipped.__name__ = test.__name__
        return skipped

    return skip


example = note = settings
