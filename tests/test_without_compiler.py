"""An installation made with FASTCONV_COMPILE=0 where no compiler is: what setup.py leaves, and that it serves every operator."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch

import fastconv
from fastconv import _ops

# Asked of what is installed: whoever imports setuptools or looks for pip this late exchanges distutils under those who have it already.
TOOLS = {"pip", "setuptools"} - {each.name for each in distributions()}
pytestmark = pytest.mark.skipif(bool(TOOLS), reason=f"installs with pip and setuptools; {', '.join(TOOLS)} not installed")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")
LIBRARY = "libfastconv_cpu.so"


def environment(**more):
    """Without a compiler, whatever the machine has."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FASTCONV_")}
    return kept | {"PATH": "/nonexistent", "CXX": "/nonexistent"} | more


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the source tree, in which an earlier build has left a library."""
    folder = tmp_path_factory.mktemp("source")
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    (folder / "csrc").mkdir()
    shutil.copy(ROOT / "csrc" / "ops.cpp", folder / "csrc")
    shutil.copytree(ROOT / "fastconv", folder / "fastconv", ignore=shutil.ignore_patterns("*.so", "__pycache__", "schemas.txt"))
    (folder / "fastconv" / LIBRARY).write_text("")
    return folder


@pytest.fixture(scope="module")
def installed(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    command = "-m pip install -q --no-index --no-build-isolation --no-deps --disable-pip-version-check --target".split()
    done = subprocess.run(
        [sys.executable, *command, str(folder), "."], cwd=source, env=environment(FASTCONV_COMPILE="0"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def setup(source, *words, **variables):
    command = [sys.executable, "setup.py", "-q", *words]
    return subprocess.run(command, cwd=source, env=environment(**variables), capture_output=True, text=True)


def test_the_wheel_is_the_same_on_every_platform(installed):
    (about,) = installed.glob("fastconv-*.dist-info")
    assert about.name == f"fastconv-{fastconv.__version__}.dist-info"
    facts = (about / "WHEEL").read_text().splitlines()
    assert "Root-Is-Purelib: true" in facts and "Tag: py3-none-any" in facts
    # The library that an earlier build left in the tree is not taken along.
    assert not list(installed.rglob("*.so"))


@pytest.mark.skipif(_ops.compiled_refusal is not None, reason="needs the compiled schemas to compare with")
def test_schemas_are_those_of_the_compiled_library(installed):
    schemas = [torch._C.parse_schema(line) for line in (installed / "fastconv" / "schemas.txt").read_text().splitlines()]
    assert {schema.name for schema in schemas} == set(_ops.FORWARD_OPS + _ops.BACKWARD_OPS + _ops.PLANNER_OPS)
    for schema in schemas:
        assert f"fastconv::{schema}" == str(getattr(torch.ops.fastconv, schema.name).default._schema)


def run_there(installed, tmp_path, *words, **variables):
    """Pytest in the installation: nothing of this tree but the test files."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    path = os.pathsep.join(filter(None, (str(installed), os.environ.get("PYTHONPATH"))))
    there = environment(PYTHONPATH=path, OMP_NUM_THREADS="1", **variables)
    done = subprocess.run(command, cwd=tmp_path, env=there, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr[-2000:]
    return done.stdout


def test_cpu_tensors_go_through_torch(installed, tmp_path):
    run_there(installed, tmp_path, str(HERE / "uncompiled.py"))


def test_triton_serves_every_operator(installed, tmp_path):
    """Forward and backward of every function, and the registration of three operators; the kernels themselves are those of test_triton.py."""
    pytest.importorskip("triton")
    chosen = "triton_alone or chosen_by_name or test_registration"
    # On a GPU Triton needs its C compiler; the interpreter does without.
    how = {"PATH": os.environ["PATH"]} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    out = run_there(installed, tmp_path, str(HERE / "triton_kernels.py"), "-k", chosen, **how)
    assert " passed" in out.splitlines()[-1] and "skipped" not in out.splitlines()[-1]


def test_nothing_is_left_out_silently(source):
    """Without the variable a missing compiler is an error, which names the way out."""
    done = setup(source, "build_ext", "--build-lib", "unused")
    assert done.returncode != 0 and "CXX=/nonexistent does not exist" in done.stderr
    assert "FASTCONV_COMPILE=0 pip install" in done.stderr and not (source / "unused" / "fastconv" / "schemas.txt").exists()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"FASTCONV_COMPILE": "no"}, "FASTCONV_COMPILE must be 0 or 1, got 'no'"),
        ({"FASTCONV_COMPILE": "0", "FASTCONV_CUDA": "1"}, "FASTCONV_COMPILE=0 and FASTCONV_CUDA=1 contradict each other"),
        ({"FASTCONV_COMPILE": "0", "FASTCONV_PREBUILT": "/libraries"}, "FASTCONV_COMPILE=0 and FASTCONV_PREBUILT=/libraries contradict"),
    ],
    ids=["neither", "cuda", "prebuilt"],
)
def test_wishes_that_do_not_fit(source, variables, said):
    done = setup(source, "--version", **variables)
    assert done.returncode != 0 and said in done.stderr


def test_the_last_build_decides_what_a_source_tree_is(source, tmp_path):
    package = source / "fastconv"
    assert setup(source, "build_ext", "--inplace", FASTCONV_COMPILE="0").returncode == 0
    assert (package / "schemas.txt").exists() and not (package / LIBRARY).exists()
    (tmp_path / LIBRARY).write_text("")
    assert setup(source, "build_ext", "--inplace", FASTCONV_PREBUILT=str(tmp_path)).returncode == 0
    assert not (package / "schemas.txt").exists() and (package / LIBRARY).exists()


def test_operators_that_cannot_be_read_are_an_error(source, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(source, other, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    ops = other / "csrc" / "ops.cpp"
    ops.write_text(ops.read_text().replace('m.def("stitch(', 'm.def(OTHER "stitch('))
    done = setup(other, "build_ext", "--inplace", FASTCONV_COMPILE="0")
    assert done.returncode != 0 and "plain string literals" in done.stderr
