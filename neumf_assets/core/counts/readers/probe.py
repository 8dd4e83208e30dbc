"""Try an HDF5 file in a process of its own, where it can do no harm.

The HDF5 library can loop for ever, ask for any amount of memory or crash on a damaged file, and none of these
can be caught from within. So each file is opened once by this script, under limits of time and memory,
before it is opened in earnest: names and attributes are read whole, numbers where they are small. It runs
by its path, with h5py alone, and takes about a third of a second.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

_SMALL = 1 << 26
_LEAST_MEMORY = 1 << 30
_MEMORY_PER_BYTE = 64
_LEAST_SECONDS = 30.0
_BYTES_PER_SECOND = 20e6
NOT_READ = ("uns", "obsm", "obsp", "varm", "varp", "row_graphs", "col_graphs")
_REFUSED = 3


def trouble(path: Path) -> str:
    """Say what goes wrong when an HDF5 file is read, "" when nothing does.

    Errors that the reader itself will meet and describe better are left to it.
    """
    size = path.stat().st_size
    seconds = _LEAST_SECONDS + size / _BYTES_PER_SECOND
    command = [sys.executable, "-I", __file__, str(path), str(_LEAST_MEMORY + _MEMORY_PER_BYTE * size)]
    # Each thread of the linear algebra library would claim address space that the limit is not meant for.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return f"reading it does not end within {seconds:.0f} s"
    if done.returncode == _REFUSED:
        return done.stdout.strip().split("\n")[0]
    return "reading it crashes the HDF5 library" if done.returncode < 0 else ""


def plugins() -> None:
    """Load the compressors that HDF5 takes from outside, where they are installed."""
    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401


def missing_filter(item: Any) -> str:
    """Name the filter that a data set needs and that is not there, "" where all are."""
    import h5py

    written = item.id.get_create_plist()
    for number in range(written.get_nfilters()):
        code, _, _, name = written.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            return f"{name.decode(errors='replace') or 'unknown'}, filter {code}"
    return ""


def _read_parts(path: str) -> None:
    import h5py

    plugins()

    def read(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if name.split("/")[0] in NOT_READ:
            return
        if isinstance(item, h5py.Dataset) and missing_filter(item):
            return  # the reader says what to install
        for key in item.attrs:
            item.attrs[key]
        if isinstance(item, h5py.Dataset) and (item.dtype.kind in "OS" or item.nbytes <= _SMALL):
            item[()]

    with h5py.File(path, "r") as file:
        file.visititems(read)


def _main(path: str, memory: int) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _read_parts(path)
    except MemoryError:
        print(f"reading it takes more than {memory / 2**30:.1f} GiB of memory")
        return _REFUSED
    except OSError as error:
        print(str(error).split("\n")[0])
        return _REFUSED
    except Exception:  # the reader meets the same and says which part it needed
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], int(sys.argv[2])))
