"""Large memory pages for the arrays of a process on Linux.

XLA on CPU asks for the memory of a step's intermediate arrays at each step, and gives it back. By pages of 4 KiB the
kernel clears and maps some 15,000 of them a step for a small network, which takes a fifth of the time; glibc asks for
pages of 2 MiB if a variable says so before the process starts.
"""

import os
import pathlib
import platform
import sys
from collections.abc import Mapping

_VARIABLE, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_KERNEL = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart() -> None:
    """Start the program anew, as the same process, with large pages, where that changes anything.

    It does where the kernel gives large pages to those who ask (`madvise`, the default of Debian and Ubuntu) and glibc
    can ask (2.35 and later). A user's own GLIBC_TUNABLES are kept, and decide if they name this setting. Call it before
    the program has opened or printed anything.
    """
    wanted = environment(os.environ, _kernel_setting(), platform.libc_ver())
    if wanted is not None and sys.executable:
        os.execve(sys.executable, sys.orig_argv, wanted)


def environment(known: Mapping[str, str], kernel: str, libc: tuple[str, str]) -> dict[str, str] | None:
    """Return the variables `known` with large pages added; None if they would change nothing.

    `kernel` is the text of its setting, `libc` the name and the version of the C library.

    >>> environment({"GLIBC_TUNABLES": "a=1"}, "always [madvise] never", ("glibc", "2.36"))
    {'GLIBC_TUNABLES': 'a=1:glibc.malloc.hugetlb=1'}
    >>> environment({}, "[always] madvise never", ("glibc", "2.36"))
    """
    tunables = known.get(_VARIABLE, "")
    name, version = libc
    if _TUNABLE in tunables or "[madvise]" not in kernel or name != "glibc":
        return None
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < (2, 35):
        return None
    return {**known, _VARIABLE: ":".join(filter(None, (tunables, f"{_TUNABLE}=1")))}


def _kernel_setting() -> str:
    try:
        return _KERNEL.read_text()
    except OSError:
        return ""  # another system
