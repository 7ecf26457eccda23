"""The allocator's settings, seen in the page faults of a process that frees and takes a large block again; Python's
search for garbage."""

import gc
import os
import platform
import subprocess
import sys

import pytest

from engram.kernels.malloc import give_back_freed_memory, no_search_for_garbage

PROGRAM = """
import resource, sys, threading
from engram.kernels.malloc import keep_freed_memory
took = keep_freed_memory(one_arena=True) if sys.argv[1] == "keep" else None
def run():
    global faults
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = b"x" * (128 << 20)
        del block
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
run()
first = faults
thread = threading.Thread(target=run)
thread.start()
thread.join()
print(took, max(first, faults) if took else min(first, faults))
"""


def run(how: str, **environment: str) -> tuple[str, int]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", PROGRAM, how]
    output = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=True).stdout
    took, faults = output.split()
    return took, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_a_freed_block_is_used_again_without_page_faults_in_any_thread():
    took, faults = run("keep")
    _, default = run("leave")
    assert took == "True"
    assert faults < 5 < default


def test_the_users_own_settings_stay():
    assert run("keep", MALLOC_ARENA_MAX="8")[0] == "False"


@pytest.mark.parametrize("searches", [True, False])
def test_garbage_is_searched_for_again_where_it_was_before(searches):
    before = gc.isenabled()
    (gc.enable if searches else gc.disable)()
    try:
        with no_search_for_garbage():
            assert not gc.isenabled()
        assert gc.isenabled() == searches
        with pytest.raises(ZeroDivisionError), no_search_for_garbage():
            raise ZeroDivisionError
        assert gc.isenabled() == searches
    finally:
        (gc.enable if before else gc.disable)()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_what_was_freed_goes_back_to_the_system():
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    # Small blocks, which are not mapped one by one. The last one stays, so that what is free has no end to cut off.
    blocks = [b"x" * 8000 for _ in range(20_000)]
    del blocks[:-1]
    before = resident()
    give_back_freed_memory()
    assert resident() < before - 100e6
