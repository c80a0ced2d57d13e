"""Drives CMake with ninja; everything about targets and flags is in CMakeLists.txt.

Environment: MAX_JOBS, NVCC_THREADS, TORCH_CUDA_ARCH_LIST ("8.0;9.0a"), FASTCONV_CUDA = auto | 0 | 1,
FASTCONV_PREBUILT = folder with libraries to reuse, FASTCONV_COMPILE = 1 | 0. With FASTCONV_COMPILE=0 nothing is compiled and no compiler,
CMake, ninja or pybind11 is needed: the package holds its Python files and the operators' schemas, CUDA tensors go to the Triton kernels
and CPU tensors to PyTorch's own operators.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
LIBRARIES = ("libfastconv_cpu.so", "libfastconv_cuda.so")
# Where nothing is compiled; an installation has either this file or the libraries (fastconv/_ops.py).
SCHEMAS = "schemas.txt"
TOOLS = "`pip install cmake ninja pybind11` first"
WAY_OUT = (
    "Or install without compiled kernels: `FASTCONV_COMPILE=0 pip install --no-build-isolation .`; CUDA tensors then go to Triton, "
    "CPU tensors to PyTorch's own operators"
)


def compile_wanted() -> bool:
    choice = os.environ.get("FASTCONV_COMPILE", "1")
    if choice not in ("0", "1"):
        raise SystemExit(f"fastconv: FASTCONV_COMPILE must be 0 or 1, got {choice!r}")
    for name in ("FASTCONV_CUDA", "FASTCONV_PREBUILT"):
        value = os.environ.get(name, "")
        if choice == "0" and value not in ("", "0", "auto"):
            raise SystemExit(f"fastconv: FASTCONV_COMPILE=0 and {name}={value} contradict each other")
    return choice == "1"


def schemas() -> list[str]:
    """The operators' schemas as csrc/ops.cpp, the one place that has them, gives them to torch."""
    source = re.sub(r"//[^\n]*", "", (ROOT / "csrc" / "ops.cpp").read_text(encoding="utf-8"))
    found = re.findall(r'\bm\.def\(\s*((?:"[^"\\]*"\s*)+)\)', source)
    if not found or len(found) != source.count(".def"):
        raise SystemExit("fastconv: csrc/ops.cpp gives schemas by something else than plain string literals, which setup.py cannot read")
    return ["".join(re.findall(r'"([^"]*)"', literals)) for literals in found]


def leave_schemas(folder: Path) -> None:
    """In the place of libraries, those of an earlier build in a source tree included: the last build decides what the tree is."""
    folder.mkdir(parents=True, exist_ok=True)
    for library in folder.glob("*.so"):
        library.unlink()
    (folder / SCHEMAS).write_text("\n".join(schemas()) + "\n", encoding="utf-8")


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("fastconv: PyTorch (>= 2.10) must be installed first, then build with `pip install --no-build-isolation .`")
    return Path(next(iter(spec.submodule_search_locations)))


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidate = Path(home, "bin", "nvcc") if home else None
    return str(candidate) if candidate and candidate.exists() else shutil.which("nvcc")


def cuda_wanted() -> bool:
    choice = os.environ.get("FASTCONV_CUDA", "auto").lower()
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"fastconv: FASTCONV_CUDA must be auto, 0 or 1, got {choice!r}")
    if choice == "1" and find_nvcc() is None:
        raise SystemExit("fastconv: FASTCONV_CUDA=1 but nvcc was not found: put it on PATH or set CUDA_HOME")
    # With a CPU build of torch the library would never be loaded, so "auto" does not spend minutes of nvcc on it; "1" builds it all the same.
    useful = choice == "1" or (torch_folder() / "lib" / "libtorch_cuda.so").exists()
    return choice != "0" and useful and find_nvcc() is not None


def cuda_architectures() -> str:
    """TORCH_CUDA_ARCH_LIST ("8.0 9.0a+PTX") in CMake's terms ("80-real;90a")."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "8.0;9.0a").replace(" ", ";")
    out = []
    for arch in filter(None, listed.split(";")):
        number = arch.replace(".", "").replace("+PTX", "")
        out.append(number if arch.endswith("+PTX") else f"{number}-real")
    return ";".join(out)


def output_folder(command: build_ext) -> Path:
    return ROOT / "fastconv" if command.inplace or command.editable_mode else Path(command.build_lib).resolve() / "fastconv"


class CMakeBuild(build_ext):
    def run(self) -> None:
        out = output_folder(self)
        out.mkdir(parents=True, exist_ok=True)
        (out / SCHEMAS).unlink(missing_ok=True)
        prebuilt = os.environ.get("FASTCONV_PREBUILT")
        if prebuilt:
            self.reuse(Path(prebuilt), out)
        else:
            self.compile(out)

    def reuse(self, folder: Path, out: Path) -> None:
        found = [p for p in folder.iterdir() if p.name in LIBRARIES or p.name.startswith("_C.")]
        if not any(p.name == LIBRARIES[0] for p in found):
            raise SystemExit(f"fastconv: FASTCONV_PREBUILT={folder} holds no {LIBRARIES[0]}")
        for path in found:
            shutil.copy2(path, out / path.name)

    def compile(self, out: Path) -> None:
        named = os.environ.get("CXX", "").split()
        if not any(map(shutil.which, named[:1] or ("c++", "g++", "clang++"))):
            looked = f"CXX={os.environ['CXX']} does not exist" if named else "no C++ compiler found"
            raise SystemExit(f"fastconv: {looked}: install one (Debian and Ubuntu: apt-get install g++) or set CXX. {WAY_OUT}")
        try:
            import pybind11
        except ImportError:
            raise SystemExit(f"fastconv: the build needs pybind11: {TOOLS}. {WAY_OUT}") from None

        torch = torch_folder()
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_INSTALL_PREFIX": out,
            "FASTCONV_TORCH_INCLUDE": torch / "include",
            "FASTCONV_TORCH_LIB": torch / "lib",
            "FASTCONV_VERSION": self.distribution.get_version(),
            "FASTCONV_CUDA": "ON" if cuda_wanted() else "OFF",
            "FASTCONV_CUDA_ARCHITECTURES": cuda_architectures(),
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "Python_EXECUTABLE": sys.executable,
        }
        if cuda_wanted():
            options["CMAKE_CUDA_COMPILER"] = find_nvcc()
            options["CMAKE_CUDA_FLAGS"] = f"--threads={os.environ.get('NVCC_THREADS', '1')}"
        cmake = shutil.which("cmake") or str(Path(sys.executable).with_name("cmake"))
        ninja = shutil.which("ninja") or str(Path(sys.executable).with_name("ninja"))
        configure = [cmake, "-S", ROOT, "-B", build, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        self.call([*configure, *(f"-D{k}={v}" for k, v in options.items())], "configuring the build")
        self.call([cmake, "--build", build, "-j", jobs], "compiling")
        self.call([cmake, "--install", build], "installing the libraries")

    def call(self, command: list, what: str) -> None:
        try:
            subprocess.run([str(c) for c in command], check=True)
        except FileNotFoundError:
            raise SystemExit(f"fastconv: {command[0]} was not found while {what}: {TOOLS}. {WAY_OUT}") from None
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"fastconv: {what} failed (exit code {error.returncode}); the messages above say where") from None

    def get_outputs(self) -> list[str]:
        return [str(p) for p in output_folder(self).glob("*.so")]


class SchemasInPlace(build_ext):
    """`python setup.py build_ext --inplace` without a compiler."""

    def run(self) -> None:
        leave_schemas(output_folder(self))


class PythonAndSchemas(build_py):
    """What pip asks for where there are no extensions: a wheel that is the same on every platform."""

    def run(self) -> None:
        super().run()
        leave_schemas(ROOT / "fastconv" if self.editable_mode else Path(self.build_lib).resolve() / "fastconv")


if compile_wanted():
    setup(ext_modules=[Extension("fastconv._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
else:
    setup(cmdclass={"build_ext": SchemasInPlace, "build_py": PythonAndSchemas})
