"""Runs tests of kernels with AddressSanitizer:

    python -m tools.cuda_emulator.sanitize tests/cuda/test_norm.py -k 800-forward

Guard pages see what is past an array by more than its slack; this sees every byte. What it finds
ends the process with its report. The arguments are pytest's.
"""

import os
import subprocess
import sys

from tools.cuda_emulator.build import SANITIZE, compiler


def environment() -> dict[str, str]:
    """Variables under which a process builds and runs kernels with AddressSanitizer."""
    command = [compiler(), "-print-file-name=libasan.so"]
    library = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    # Python leaks, as it always does; fibers have no fake stacks.
    options = "detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0"
    return {**os.environ, SANITIZE: "1", "LD_PRELOAD": library, "ASAN_OPTIONS": options}


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """pytest with these arguments; its output, and AddressSanitizer's, is captured."""
    command = [sys.executable, "-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, *arguments], env=environment(), capture_output=True, text=True, check=False
    )


if __name__ == "__main__":
    done = run(*sys.argv[1:])
    print(done.stdout + done.stderr)
    sys.exit(done.returncode)
