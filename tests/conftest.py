"""Fixtures shared by all tests: the seed, the device, the memory format."""

import os
import random
import zlib

import pytest
import torch
from cases import FORMATS

SEED = int(os.environ.get("FASTCONV_TEST_SEED") or random.SystemRandom().randrange(2**31))


def pytest_report_header(config):
    return f"fastconv: seed {SEED} (FASTCONV_TEST_SEED={SEED} repeats these inputs)"


def pytest_collection_modifyitems(config, items):
    """FASTCONV_TEST_SHARE=0.3 runs a random three tenths, drawn by the seed."""
    share = float(os.environ.get("FASTCONV_TEST_SHARE") or 1)
    if share < 1:
        draw = random.Random(SEED)
        kept = [item for item in items if draw.random() < share]
        config.hook.pytest_deselected(items=list(set(items).difference(kept)))
        items[:] = kept


@pytest.fixture(autouse=True)
def _fresh_random_inputs(request):
    """Every test draws its own inputs, the same ones whether it runs alone or with the others."""
    torch.manual_seed(SEED ^ zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request):
    return torch.device(request.param)


@pytest.fixture(params=FORMATS)
def memory_format(request):
    return FORMATS[request.param]


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def dtype(request):
    return request.param
