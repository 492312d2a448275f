"""How long a file takes to open: python benchmarks/open_vocabulary.py VOCABULARY.gguf [RUNS]

Prints the median, least and most seconds of opening it and reading all tokens.
"""

import sys
import time
from statistics import median

from ggrun.gguf import GGUF


def seconds(path: str) -> float:
    start = time.perf_counter()
    opened = GGUF(path)
    opened.strings("tokenizer.ggml.tokens")
    return time.perf_counter() - start


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    runs = [seconds(sys.argv[1]) for _ in range(int(sys.argv[2]) if len(sys.argv) == 3 else 11)]
    print(f"median {median(runs):.3f} s, least {min(runs):.3f}, most {max(runs):.3f}, {len(runs)} runs")


if __name__ == "__main__":
    main()
