"""The allocator's setting, in a process of its own: it lasts as long as the process."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from xception_jax.runtime.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory(gib=0.125)
block = bytearray(b"1") * (256 << 20)
del block
pages = int(open("/proc/self/statm").read().split()[1])
print(pages * 4096 >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
def test_freed_memory_stays_in_the_process():
    def resident_mib(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert resident_mib("default") < 128
    assert resident_mib("kept") > 256
