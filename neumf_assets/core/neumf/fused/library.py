"""Builds the kernel with the system's C++ compiler on first use, keeps it in a cache, and loads it.

The sources beside this module need nothing but a C++17 compiler; the library is called through
plain pointers.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MAX_DEPTH = 5
FLAGS = ("-O3", "-std=c++17", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC", "-pthread")
NATIVE_FLAGS = (("-march=native",), ("-mcpu=native",), ())
BUILD_SECONDS = 300
SOURCES = (
    "kernel.cpp",
    "block.h",
    "simd.h",
    "objective.h",
    "float32.h",
    "bfloat16.h",
    "gmf.h",
    "gmf_epoch.h",
)
KERNEL = "NEUMF_KERNEL"
"""Environment variable that forces a path of the kernels, for tests and comparisons."""
PATHS = {
    "avx2": "-march=haswell",
    "avx512": "-march=skylake-avx512",
    "avx512bf16": "-march=cooperlake",
    "amx": "-march=sapphirerapids",
    "portable": "",
}


class KernelUnavailable(RuntimeError):
    """The kernel cannot be built, loaded or trusted here; its text says why."""


class Block(ctypes.Structure):
    """Mirror of ``struct Block`` in ``block.h``: same fields, same order."""

    _fields_ = (
        ("cells", ctypes.c_int64),
        ("genes", ctypes.c_int64),
        ("depth", ctypes.c_int32),
        ("width", ctypes.c_int32 * MAX_DEPTH),
        ("objective", ctypes.c_int32),
        ("precision", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("max_log_mean", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("f0", ctypes.c_void_p),
        ("a", ctypes.c_void_p),
        ("c", ctypes.c_void_p),
        ("weight", ctypes.c_void_p * MAX_DEPTH),
        ("bias", ctypes.c_void_p * MAX_DEPTH),
        ("out", ctypes.c_void_p),
        ("log_size", ctypes.c_void_p),
        ("log_dispersion", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("y_start", ctypes.c_void_p),
        ("y_length", ctypes.c_void_p),
        ("y_index", ctypes.c_void_p),
        ("y_value", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("held_out", ctypes.c_void_p),
        ("held_out_width", ctypes.c_int64),
        ("column", ctypes.c_void_p),
        ("columns", ctypes.c_int64),
        ("loss", ctypes.c_double),
        ("f", ctypes.c_void_p),
        ("da", ctypes.c_void_p),
        ("dc", ctypes.c_void_p),
        ("dweight", ctypes.c_void_p * MAX_DEPTH),
        ("dbias", ctypes.c_void_p * MAX_DEPTH),
        ("dout", ctypes.c_void_p),
        ("dlog_dispersion", ctypes.c_void_p),
    )


class GmfBlock(ctypes.Structure):
    """Mirror of ``struct GmfBlock`` in ``gmf.h``."""

    _fields_ = (
        ("cells", ctypes.c_int64),
        ("genes", ctypes.c_int64),
        ("size", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("max_log_mean", ctypes.c_float),
        ("unused", ctypes.c_int32),
        ("cell", ctypes.c_void_p),
        ("gene", ctypes.c_void_p),
        ("cell_offset", ctypes.c_void_p),
        ("gene_bias", ctypes.c_void_p),
        ("y_start", ctypes.c_void_p),
        ("y_length", ctypes.c_void_p),
        ("y_index", ctypes.c_void_p),
        ("y_value", ctypes.c_void_p),
        ("held_out", ctypes.c_void_p),
        ("held_out_width", ctypes.c_int64),
        ("loss", ctypes.c_double),
        ("dcell", ctypes.c_void_p),
        ("dgene", ctypes.c_void_p),
        ("dcell_offset", ctypes.c_void_p),
        ("dgene_bias", ctypes.c_void_p),
    )


class AdamStep(ctypes.Structure):
    """Mirror of ``struct AdamStep`` in ``gmf.h``."""

    _fields_ = (
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("beta1", ctypes.c_double),
        ("beta2", ctypes.c_double),
        ("epsilon", ctypes.c_float),
        ("share", ctypes.c_float),
        ("rate_share", ctypes.c_float),
        ("threads", ctypes.c_int32),
        ("row", ctypes.c_void_p),
        ("gradient", ctypes.c_void_p),
        ("rate", ctypes.c_void_p),
        ("decay", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("first", ctypes.c_void_p),
        ("second", ctypes.c_void_p),
        ("steps", ctypes.c_void_p),
    )


class EpochTable(ctypes.Structure):
    """Mirror of ``struct EpochTable`` in ``gmf_epoch.h``."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("first", ctypes.c_void_p),
        ("second", ctypes.c_void_p),
        ("steps", ctypes.c_void_p),
        ("rate", ctypes.c_void_p),
        ("decay", ctypes.c_void_p),
        ("columns", ctypes.c_int64),
        ("moved", ctypes.c_int64),
    )


class GmfEpoch(ctypes.Structure):
    """Mirror of ``struct GmfEpoch`` in ``gmf_epoch.h``."""

    _fields_ = (
        ("steps", ctypes.c_int64),
        ("genes", ctypes.c_int64),
        ("size", ctypes.c_int32),
        ("shifted", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("max_log_mean", ctypes.c_float),
        ("bias_prior", ctypes.c_float),
        ("epsilon", ctypes.c_float),
        ("beta1", ctypes.c_double),
        ("beta2", ctypes.c_double),
        ("cell", EpochTable),
        ("gene", EpochTable),
        ("shift", EpochTable),
        ("out", EpochTable),
        ("log_size", ctypes.c_void_p),
        ("expected_bias", ctypes.c_void_p),
        ("y_start", ctypes.c_void_p),
        ("y_length", ctypes.c_void_p),
        ("y_index", ctypes.c_void_p),
        ("y_value", ctypes.c_void_p),
        ("held_out", ctypes.c_void_p),
        ("held_out_row", ctypes.c_void_p),
        ("held_out_width", ctypes.c_int64),
        ("order", ctypes.c_void_p),
        ("begin", ctypes.c_void_p),
        ("dataset", ctypes.c_void_p),
        ("rate_share", ctypes.c_void_p),
        ("share", ctypes.c_void_p),
        ("dataset_share", ctypes.c_void_p),
        ("loss", ctypes.c_double),
    )


def native_flags() -> tuple[tuple[str, ...], ...]:
    """Flags that target this CPU, in the order in which they are tried; or the path that is forced.

    Raises
    ------
    KernelUnavailable
        When the path that is forced is none.
    """
    forced = os.environ.get(KERNEL)
    if not forced:
        return NATIVE_FLAGS
    if forced not in PATHS:
        raise KernelUnavailable(f"{KERNEL}={forced} is no path; there are {', '.join(PATHS)}")
    return ((PATHS[forced],),) if PATHS[forced] else ((),)


def find_compiler() -> tuple[str, ...]:
    """Return the C++ compiler's command: ``$CXX``, else ``c++``, ``g++`` or ``clang++``; or nothing."""
    chosen = os.environ.get("CXX")
    commands = [shlex.split(chosen)] if chosen else [["c++"], ["g++"], ["clang++"]]
    for command in commands:
        if command and (path := shutil.which(command[0])):
            return (path, *command[1:])
    return ()


def cache_folder() -> Path:
    """Return where built kernels are kept: the user's cache, or below ``$NEUMF_HOME`` where that cannot be written.

    One build serves every home of the user. In a container, the user often has no folder of its own.

    Raises
    ------
    KernelUnavailable
        When neither can be written.
    """
    home = os.environ.get("NEUMF_HOME")
    bases = [_user_cache, *([lambda: Path(home) / "cache"] if home else [])]
    reasons = []
    for base in bases:
        try:
            folder = base() / "neumf-assets" / "fused"
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: the account has no home folder
            reasons.append(str(error))
            continue
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        reasons.append(f"{folder} cannot be written")
    raise KernelUnavailable("no folder to build the kernel in: " + "; ".join(reasons))


def _user_cache() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def cpu_features() -> str:
    """Return what tells CPUs apart that need different builds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("vendor_id", "model name", "model", "flags", "Features")
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    return "\n".join(value for key, value in found.items() if key.strip() in wanted)


def build(compiler: tuple[str, ...], folder: Path) -> Path:
    """Return the kernel built by ``compiler`` for this CPU, from ``folder`` if it is there already.

    Builds go to a name of their own and are renamed, so that any number may run at once.
    """
    source = Path(__file__).parent
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=60).stdout
    key = hashlib.sha256(repr((compiler, version, cpu_features(), FLAGS, native_flags())).encode())
    for name in SOURCES:
        key.update((source / name).read_bytes())
    library = folder / f"kernel-{key.hexdigest()[:32]}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        target = Path(work) / library.name
        for native in native_flags():
            command = [*compiler, *FLAGS, *native, str(source / "kernel.cpp"), "-o", str(target)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS)
            if done.returncode == 0:
                target.replace(library)
                return library
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise KernelUnavailable(f"{compiler[0]} could not build the kernel: {last}")


@functools.cache
def load() -> ctypes.CDLL:
    """Build the kernel if need be and load it, once per process.

    Raises
    ------
    KernelUnavailable
        No compiler, a failed build, or a library that does not fit this module.
    """
    compiler = find_compiler()
    if not compiler:
        raise KernelUnavailable("no C++ compiler found (CXX, c++, g++ or clang++)")
    try:
        library = ctypes.CDLL(str(build(compiler, cache_folder())))
    except KernelUnavailable:
        raise
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelUnavailable(f"the kernel could not be built or loaded: {error}") from error
    library.fused_block.argtypes = [ctypes.POINTER(Block)]
    library.fused_block.restype = ctypes.c_int32
    library.fused_block_size.restype = ctypes.c_int64
    library.fused_gmf.argtypes, library.fused_gmf.restype = [ctypes.POINTER(GmfBlock)], ctypes.c_int32
    library.fused_adam.argtypes, library.fused_adam.restype = [ctypes.POINTER(AdamStep)], ctypes.c_int32
    library.fused_gmf_epoch.argtypes, library.fused_gmf_epoch.restype = (
        [ctypes.POINTER(GmfEpoch)],
        ctypes.c_int32,
    )
    for size in (library.fused_gmf_size, library.fused_adam_size, library.fused_gmf_epoch_size):
        size.restype = ctypes.c_int64
    library.fused_supports.argtypes = [ctypes.c_int32]
    library.fused_supports.restype = ctypes.c_int32
    sizes = [library.fused_block_size(), library.fused_gmf_size(), library.fused_adam_size()]
    sizes.append(library.fused_gmf_epoch_size())
    if sizes != list(map(ctypes.sizeof, (Block, GmfBlock, AdamStep, GmfEpoch))):
        raise KernelUnavailable("the kernel's block differs from this module's")
    return library
