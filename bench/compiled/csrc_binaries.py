"""What the kernels of ``csrc/device.cu`` compile to for a GPU: registers, stack, shared memory.

No GPU is needed: nvcc compiles for every architecture it knows. Its newest major version dropped
sm_70, which NVRTC 12 still compiles; that comes from PyPI: nvidia-cuda-nvrtc-cu12,
nvidia-cuda-runtime-cu12 and nvidia-cuda-nvcc-cu12, the last two for their headers.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

SOURCE = Path(__file__).parents[2] / "csrc" / "device.cu"
ARCHS = (70, 75, 80, 86, 89, 90, 100, 103, 120, 121)
NVRTC_ARCH = 70
OLDEST_BFLOAT16 = 80
WORKERS = 2
NVRTC_PARTS = ("cuda_nvrtc/lib/libnvrtc.so.12", "cuda_runtime/include", "cuda_nvcc/include")
# The types of the sources, by how the demangler writes them.
PLAIN_NAMES = {"__half": "half", "__nv_bfloat16": "bfloat16", "ocvtp::": ""}


class CompileError(RuntimeError):
    """A sentence of the compiler."""


class Row(NamedTuple):
    """A kernel on an architecture."""

    arch: int
    kernel: str
    registers: int = 0  # a thread
    stack: int = 0  # bytes a thread, local memory too
    shared: int = 0  # static bytes a block
    instruction: str = "none"  # that multiplies matrices: HMMA in SASS, on sm_70 wmma in PTX
    failure: str = ""  # why it does not compile

    @property
    def key(self) -> str:
        return self.kernel

    def numbers(self) -> dict[str, int | str]:
        """What the budget records."""
        return dict(zip(self._fields[2:-1], self[2:-1], strict=True))


def compiler_of(arch: int) -> str:
    """Which compiler serves an architecture: nvcc or nvrtc."""
    return "nvrtc" if arch == NVRTC_ARCH else "nvcc"


def arch_options(arch: int) -> list[str]:
    """What both compilers are told; bfloat16 only where the architecture has its arithmetic."""
    bfloat16 = int(arch >= OLDEST_BFLOAT16)
    return [f"-arch=sm_{arch}", "-std=c++17", f"-DOCVTP_BF16={bfloat16}", f"-I{SOURCE.parent}"]


def find(*names: str, folder: Path | None = None) -> str | None:
    """The first of these tools on the path, in CUDA's usual folder or in ``folder``."""
    folders = ["/usr/local/cuda/bin", *([str(folder)] if folder else [])]
    places = [None, *folders]
    found = (shutil.which(name, path=place) for place in places for name in names)
    return next(filter(None, found), None)


class Tools(NamedTuple):
    """Where the tools are; None where missing."""

    nvcc: str | None
    nvrtc: tuple[Path, ...] | None  # as `NVRTC_PARTS`
    cuobjdump: str | None
    demangler: str | None

    @classmethod
    def here(cls) -> Tools:
        """The tools of this machine; Triton has cuobjdump and nvdisasm in its wheel."""
        triton = find_spec("triton")
        inside = Path(str(triton.origin)).parent / "backends/nvidia/bin" if triton else None
        packages = Path(sysconfig.get_path("platlib"), "nvidia")
        nvrtc = tuple(packages / part for part in NVRTC_PARTS)
        return cls(
            find("nvcc"),
            nvrtc if all(path.exists() for path in nvrtc) else None,
            find("cuobjdump", folder=inside),
            find("cu++filt", "c++filt"),
        )

    def missing_for(self, arch: int) -> str | None:
        """Why this architecture's kernels cannot be compiled and read here, or None."""
        if self.cuobjdump is None:
            return "cuobjdump is missing: it comes with the CUDA toolkit and with Triton"
        if self.demangler is None:
            return "c++filt is missing: it comes with binutils"
        if arch == NVRTC_ARCH:
            if self.nvrtc is None:
                return (
                    f"NVRTC 12, for sm_{NVRTC_ARCH}, is missing: pip install nvidia-cuda-nvrtc-cu12"
                    " nvidia-cuda-runtime-cu12 nvidia-cuda-nvcc-cu12"
                )
        elif self.nvcc is None:
            return "nvcc is missing: it comes with the CUDA toolkit"
        elif f"sm_{arch}" not in output(self.nvcc, "--list-gpu-code").split():
            return f"this nvcc does not know sm_{arch}"
        return None

    def versions(self) -> dict[str, str]:
        """The compilers' versions."""
        found = {}
        if self.nvcc:
            found["nvcc"] = release(output(self.nvcc, "--version"))
        if self.nvrtc:
            found["nvrtc"] = release(Nvrtc(self.nvrtc).ptx("", arch_options(NVRTC_ARCH)))
        return found


def release(said: str) -> str:
    """13.0.88 from what a compiler says of itself."""
    found = re.search(r"release [\d.]+, V([\d.]+)", said)
    if found is None:
        raise RuntimeError(f"no compiler version in {said[:200]!r}")
    return found[1]


def output(*command: str) -> str:
    """What a command prints; `CompileError` with its first line that says so where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(complaint(done.stderr or done.stdout))
    return done.stdout


def complaint(log: str) -> str:
    """The first line of a compiler's log that names an error."""
    lines = log.strip().splitlines() or ["no reason is given"]
    return next((line for line in lines if "error" in line), lines[-1]).strip()


class Nvrtc:
    """CUDA's compiler as a library."""

    def __init__(self, parts: tuple[Path, ...]) -> None:
        library, *self.folders = parts
        self.library = ctypes.CDLL(str(library))

    def _text(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self.library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        text = ctypes.create_string_buffer(size.value)
        self._check(getattr(self.library, f"nvrtcGet{what}")(program, text))
        return text.raw

    def _check(self, status: int) -> None:
        if status:
            raise CompileError(f"NVRTC ends with status {status}")

    def _compile(self, source: str, options: Iterable[str], *results: str) -> list[bytes]:
        arguments = [*options, *(f"-I{folder}" for folder in self.folders)]
        encoded = (ctypes.c_char_p * len(arguments))(*(text.encode() for text in arguments))
        program = ctypes.c_void_p()
        create = self.library.nvrtcCreateProgram
        self._check(create(ctypes.byref(program), source.encode(), b"device.cu", 0, None, None))
        try:
            if self.library.nvrtcCompileProgram(program, len(arguments), encoded):
                log = self._text(program, "ProgramLog").decode(errors="replace").strip("\0")
                raise CompileError(complaint(log))
            return [self._text(program, what) for what in results]
        finally:
            self.library.nvrtcDestroyProgram(ctypes.byref(program))

    def ptx(self, source: str, options: Iterable[str]) -> str:
        """The assembly text of a source."""
        return self._compile(source, options, "PTX")[0].decode().strip("\0")

    def cubin_and_ptx(self, source: str, options: Iterable[str]) -> tuple[bytes, str]:
        """The binary and its assembly text."""
        cubin, ptx = self._compile(source, options, "CUBIN", "PTX")
        return cubin, ptx.decode().strip("\0")


def usage(said: str) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Kernel, and its registers, stack and static shared memory, as -res-usage says them."""
    pattern = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    for name, registers, stack, shared, local in re.findall(pattern, said):
        yield name, (int(registers), max(int(stack), int(local)), int(shared))


def multiplying(text: str, heading: str, instruction: str) -> set[str]:
    """The kernels of an assembly text that have an instruction; a heading begins a kernel."""
    _, *parts = re.split(heading, text)
    return {name for name, body in zip(parts[::2], parts[1::2], strict=True) if instruction in body}


def plain(demangled: str) -> str:
    """``slot_attention_kernel<half, 64, false>`` from the signature that the demangler writes."""
    signature = demangled.strip().removeprefix("void ")
    for spelled, name in PLAIN_NAMES.items():
        signature = signature.replace(spelled, name)
    return signature.split("(")[0]


def compile_arch(arch: int, tools: Tools) -> list[Row]:
    """A row for every kernel on an architecture that ``tools.missing_for`` misses nothing for."""
    assert tools.cuobjdump and tools.demangler
    with TemporaryDirectory() as folder:
        file = Path(folder, "device.cubin")
        try:
            if arch == NVRTC_ARCH:
                assert tools.nvrtc
                source = SOURCE.read_text(encoding="utf-8")
                cubin, text = Nvrtc(tools.nvrtc).cubin_and_ptx(source, [*arch_options(arch), "-w"])
                file.write_bytes(cubin)
                products = multiplying(text, r"\.entry (\w+)", "wmma.mma.sync")
                instruction = "wmma"
            else:
                assert tools.nvcc
                output(tools.nvcc, *arch_options(arch), "-cubin", "-o", str(file), str(SOURCE))
                text = output(tools.cuobjdump, "-sass", str(file))
                products = multiplying(text, r"Function : (\S+)", "HMMA")
                instruction = "HMMA"
        except CompileError as error:
            return [Row(arch, SOURCE.name, failure=str(error))]
        found = list(usage(output(tools.cuobjdump, "-res-usage", str(file))))
    names = output(tools.demangler, *(kernel for kernel, _ in found)).splitlines()
    return [
        Row(arch, plain(name), *numbers, instruction if kernel in products else "none")
        for name, (kernel, numbers) in zip(names, found, strict=True)
    ]


def compile_all(archs: Iterable[int], tools: Tools) -> list[Row]:
    """A row for every kernel and architecture; a compiler is a process, or frees Python's lock."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return [
            row for rows in pool.map(lambda arch: compile_arch(arch, tools), archs) for row in rows
        ]
