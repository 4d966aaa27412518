"""What systems do differently: peaks of memory, and symbolic links that Windows refuses to most people."""

from __future__ import annotations

import ctypes
import shutil
import signal
import sys
import tempfile
from pathlib import Path

LINKS_ARE_COPIES = "this system refuses symbolic links: tests copy what they would link"


def peak_memory() -> int:
    """The most bytes that this process has held in memory so far."""
    if sys.platform == "win32":
        return _windows_peak()
    if sys.platform.startswith("linux"):  # its getrusage begins a child process at the peak of the parent
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def limit_memory(more: int) -> None:
    """Let this process take so many bytes more than it has, and end with MemoryError beyond; Linux alone."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def heed_interrupts() -> None:
    """For preexec_fn: a shell's background jobs and their children ignore SIGINT; a command in a console does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class _Counters(ctypes.Structure):
    """Windows' PROCESS_MEMORY_COUNTERS, the part that is read."""

    _fields_ = [
        ("size", ctypes.c_uint32),
        ("faults", ctypes.c_uint32),
        ("peak", ctypes.c_size_t),
        ("rest", ctypes.c_size_t * 7),
    ]


def _windows_peak() -> int:
    counters = _Counters(size=ctypes.sizeof(_Counters))
    kernel = ctypes.windll.kernel32
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    kernel.K32GetProcessMemoryInfo.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Counters), ctypes.c_uint32]
    if not kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.size):
        raise ctypes.WinError()
    return counters.peak


def links_work() -> bool:
    """Whether a symbolic link can be made: Windows asks for developer mode or an administrator."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            (Path(folder) / "link").symlink_to(folder, target_is_directory=True)
        except OSError:
            return False
        return True


def copy_instead(link: Path, target: Path | str, target_is_directory: bool = False) -> None:
    """``Path.symlink_to`` where links are refused: a copy of the target, without what git ignores."""
    target = Path(target)
    target = target if target.is_absolute() else link.parent / target
    if target.is_dir():
        shutil.copytree(target, link, ignore=shutil.ignore_patterns(".git", ".venv*", "__pycache__", "build", "dist"))
    else:
        shutil.copy2(target, link)


def copy_where_links_are_refused() -> str | None:
    """Let the tests' links be copies where the system has none; what to print about it, or None."""
    if links_work():
        return None
    Path.symlink_to = copy_instead
    return LINKS_ARE_COPIES
