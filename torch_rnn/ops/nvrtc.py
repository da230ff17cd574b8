"""Compiles CUDA C++ at run time with NVRTC and launches it through the CUDA driver.

ctypes loads both libraries: NVRTC comes with every CUDA build of PyTorch, the driver with the GPU.
"""

import ctypes
import ctypes.util
import importlib.util
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from functools import cache
from pathlib import Path

import torch

from torch_rnn.ops.graphs import capturing

log = logging.getLogger(__name__)
_Pointers = c_char_p * 1
OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
SM_COUNT = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT


class Kernel:
    """A kernel in the memory of a device. It has one parameter, a struct.

    Attributes:
        resident: The number of blocks that the device can run at the same time.
    """

    def __init__(self, binary: bytes, name: str, device: int, threads: int, shared: int) -> None:
        """Loads a kernel that runs with some threads in a block and some bytes of shared memory."""
        self._device, self._context = device, _context(device)
        self._sizes = threads, 1, 1, shared
        self._get_current, self._launch = driver().cuCtxGetCurrent, driver().cuLaunchKernel
        self._launch.argtypes = [c_void_p, *[c_uint] * 7, c_void_p, c_void_p, c_void_p]
        module, self._function, blocks, multiprocessors = c_void_p(), c_void_p(), c_int(), c_int()
        with _current(self._context):
            _call(driver().cuModuleLoadData, byref(module), binary)
            _call(driver().cuModuleGetFunction, byref(self._function), module, name.encode())
            _call(
                driver().cuOccupancyMaxActiveBlocksPerMultiprocessor,
                *(byref(blocks), self._function, c_int(threads), c_size_t(shared)),
            )
            _call(driver().cuDeviceGetAttribute, byref(multiprocessors), c_int(SM_COUNT), c_int(device))
        self.resident = max(1, blocks.value * multiprocessors.value)

    def launch(self, blocks: int, parameter: bytes) -> None:
        """Starts the kernel on the current stream of its device. Does not wait for it."""
        stream = torch._C._cuda_getCurrentRawStream(self._device)
        pointers = _Pointers(parameter)  # to the struct
        arguments = self._function, blocks, 1, 1, *self._sizes, stream, pointers, None
        current = c_void_p()
        self._get_current(byref(current))
        if current.value == self._context:  # as always, except in a new thread or for another device
            _call(self._launch, *arguments)
        else:
            with _current(self._context):
                _call(self._launch, *arguments)


@cache
def driver() -> ctypes.CDLL | None:
    """Returns the CUDA driver; None if this machine has none."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


@cache
def nvrtc() -> ctypes.CDLL | None:
    """Returns NVRTC; None if it is not found in NVIDIA's wheels, in PyTorch or by the system's loader."""
    for path in _libraries():
        try:
            library = ctypes.CDLL(path)
            library.nvrtcGetNumSupportedArchs  # noqa: B018 missing before CUDA 11.2
            return library
        except (OSError, AttributeError):
            continue
    return None


def _libraries() -> Iterator[str]:
    """Yields the possible paths of NVRTC. The CUDA version of this PyTorch comes first."""
    pattern = re.compile(r"(lib)?nvrtc(-(?!builtins)\w+)?(64_\d+_\d+)?(\.so|\.dll)[.\d]*")
    wheels = importlib.util.find_spec("nvidia")
    folders = [Path(torch.__file__).parent / "lib"]
    for folder in wheels.submodule_search_locations if wheels else ():
        folders += [*Path(folder).glob("*/lib"), *Path(folder).glob("*/bin"), *Path(folder).glob("*/bin/*")]
    paths = [
        path for folder in folders for path in sorted(folder.glob("*nvrtc*")) if pattern.fullmatch(path.name)
    ]
    major = (torch.version.cuda or "").split(".")[0]
    yield from map(str, sorted(paths, key=lambda path: not re.search(rf"(\.so\.|64_){major}", path.name)))
    yield from (f"libnvrtc.so.{number}" for number in (major, "13", "12", "11.2") if number)
    if name := ctypes.util.find_library("nvrtc"):
        yield name


@cache
def architectures() -> tuple[int, ...]:
    """Returns the compute capabilities that NVRTC compiles for, such as 90 for 9.0."""
    count = c_int()
    _call(nvrtc().nvrtcGetNumSupportedArchs, byref(count))
    numbers = (c_int * count.value)()
    _call(nvrtc().nvrtcGetSupportedArchs, numbers)
    return tuple(numbers)


def architecture(capability: tuple[int, int]) -> str | None:
    """Returns NVRTC's name for a GPU: sm_90, or an older compute_80, which the driver compiles further.

    Returns None if the GPU is older than all that NVRTC knows.
    """
    wanted = 10 * capability[0] + capability[1]
    if wanted in architectures():
        return f"sm_{wanted}"
    older = [number for number in architectures() if number < wanted]
    return f"compute_{max(older)}" if older else None


def load(source: str, name: str, device: int, threads: int, shared: int) -> Kernel:
    """Compiles a kernel for a device and loads it. See `build` and `Kernel` for the arguments.

    Raises:
        RuntimeError: A CUDA graph is being captured, or the kernel does not compile.
    """
    if capturing(torch.device("cuda", device)):
        raise RuntimeError(
            f"the kernel {name} cannot be loaded while a CUDA graph is captured; "
            "run the same code once before, or call torch_rnn.ops.cuda_backend.warm"
        )
    log.info("compiling %s for cuda:%d", name, device)
    binary, mangled = build(source, name, architecture(torch.cuda.get_device_capability(device)))
    return Kernel(binary, mangled, device, threads, shared)


@cache
def build(source: str, name: str, architecture: str) -> tuple[bytes, str]:
    """Compiles one kernel of a source; `name` is a C++ expression, such as "forward<32>".

    Returns the binary (PTX for compute_...) and the kernel's name in it.

    Raises:
        RuntimeError: The message is the compiler's.
    """
    library, program = nvrtc(), c_void_p()
    options = [
        f"--gpu-architecture={architecture}",
        "--std=c++17",
        "--fmad=false",
    ]  # the source has each fmaf
    _call(library.nvrtcCreateProgram, byref(program), source.encode(), b"kernels.cu", 0, None, None)
    try:
        _call(library.nvrtcAddNameExpression, program, name.encode())
        array = (c_char_p * len(options))(*map(str.encode, options))
        if library.nvrtcCompileProgram(program, len(options), array):
            raise RuntimeError(_output(program, "ProgramLog").decode())
        mangled = c_char_p()
        _call(library.nvrtcGetLoweredName, program, name.encode(), byref(mangled))
        kind = "CUBIN" if architecture.startswith("sm_") else "PTX"
        return _output(program, kind), mangled.value.decode()
    finally:
        library.nvrtcDestroyProgram(byref(program))


def _output(program: c_void_p, kind: str) -> bytes:
    size = c_size_t()
    _call(getattr(nvrtc(), f"nvrtcGet{kind}Size"), program, byref(size))
    output = ctypes.create_string_buffer(size.value)
    _call(getattr(nvrtc(), f"nvrtcGet{kind}"), program, output)
    return output.raw


@cache
def _context(device: int) -> int:
    """Returns PyTorch's context of a device."""
    context = c_void_p()
    _call(driver().cuInit, c_uint(0))
    _call(driver().cuDevicePrimaryCtxRetain, byref(context), c_int(device))
    return context.value


@contextmanager
def _current(context: int) -> Iterator[None]:
    """Makes a context the current one of this thread."""
    _call(driver().cuCtxPushCurrent_v2, c_void_p(context))
    try:
        yield
    finally:
        _call(driver().cuCtxPopCurrent_v2, byref(c_void_p()))


def _call(function: Callable[..., int], *arguments) -> None:
    status = function(*arguments)
    if status:
        no_memory = function.__name__.startswith("cu") and status == OUT_OF_MEMORY
        raise (torch.OutOfMemoryError if no_memory else RuntimeError)(_message(function.__name__, status))


def _message(function: str, status: int) -> str:
    name = c_char_p()
    if function.startswith("cu"):
        driver().cuGetErrorName(c_int(status), byref(name))
    return f"{function} failed with {(name.value or b'error').decode()} ({status})"
