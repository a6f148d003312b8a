import doctest
import os
import subprocess
import sys

import pytest

from uld_jax import large_pages

ASKED, GLIBC = "always [madvise] never\n", ("glibc", "2.36")


def test_examples():
    result = doctest.testmod(large_pages)
    assert result.attempted == 2
    assert result.failed == 0


@pytest.mark.parametrize(
    ("tunables", "kernel", "libc"),
    [
        ("glibc.malloc.hugetlb=0", ASKED, GLIBC),  # the user has decided
        ("", "[always] madvise never\n", GLIBC),
        ("", "always madvise [never]\n", GLIBC),
        ("", "", GLIBC),
        ("", ASKED, ("glibc", "2.31")),
        ("", ASKED, ("", "")),
    ],
)
def test_nothing_is_changed_where_nothing_would_change(tunables, kernel, libc):
    assert large_pages.environment({"GLIBC_TUNABLES": tunables}, kernel, libc) is None


def test_a_program_starts_anew_once_with_its_arguments():
    program = (
        "import os, sys; from uld_jax import large_pages; large_pages._kernel_setting = lambda: '[madvise]';"
        "large_pages.platform.libc_ver = lambda: ('glibc', '2.40'); large_pages.restart();"
        "print(os.environ['GLIBC_TUNABLES'], sys.argv[1:])"
    )
    known = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1048576"}
    done = subprocess.run([sys.executable, "-c", program, "a b"], env=known, capture_output=True, text=True, check=True)
    assert done.stdout == "glibc.malloc.trim_threshold=1048576:glibc.malloc.hugetlb=1 ['a b']\n"
