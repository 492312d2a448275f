"""ggrun bench: llama-bench's tests, flags and table, and how much of memory's bandwidth decode reaches."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TextIO

import click

from ggrun.cli.bench_output import FORMATS, Markdown, Output
from ggrun.cli.bench_tests import Case, Result, Setup, all_tests
from ggrun.cli.bench_values import Files, Names, Numbers, Pairs
from ggrun.cli.flags import Command, option
from ggrun.cli.interrupt import interruptible
from ggrun.cli.placement import placement_options, sum_options, sums_taken, taken
from ggrun.cli.streams import complain, say
from ggrun.cli.terminal import compile_progress
from ggrun.errors import GgrunError, Interrupted, UsageError

if TYPE_CHECKING:
    from ggrun.cli.bench_session import Session
    from ggrun.cli.bench_used import Measured

_FORMAT = click.Choice(["md", "csv", "json", "jsonl"])
_CACHE_TYPES = Names(("f16", "f32", "bf16", "q8_0"))
_LISTS = {
    "n_prompt": ["512"], "n_gen": ["128"], "n_pg": [], "n_depth": ["0"], "n_batch": ["2048"],
    "n_ubatch": ["512"], "type_k": ["f16"], "type_v": ["f16"], "n_threads": [], "model": [],
}  # fmt: skip
"""The options that are lists, with their defaults."""


def _list(*names: str, **settings: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option that is a list, and may be given again."""
    name = next(name for name in names if name in _LISTS)
    return option(*names, multiple=True, default=_LISTS[name], show_default=bool(_LISTS[name]), **settings)


@click.command(cls=Command)
@_list("-m", "--model", "model", type=Files(), help="GGUF files, or any shard. Default: the demo model.")
@_list("-p", "--n-prompt", "n_prompt", type=Numbers(0), help="Tests of prompts, pp; 0: none.")
@_list("-n", "--n-gen", "n_gen", type=Numbers(0), help="Tests of generation, tg; 0: none.")
@_list("-pg", "--n-pg", "n_pg", type=Pairs(), help="Tests of a prompt and a generation; several: 1/2,3/4.")
@_list("-d", "--n-depth", "n_depth", type=Numbers(0), help="Tokens in the context before a test.")
@_list("-b", "--batch-size", "n_batch", type=Numbers(1), help="Most tokens of a batch.")
@_list("-ub", "--ubatch-size", "n_ubatch", type=Numbers(1), help="Tokens computed together.")
@_list("-ctk", "--cache-type-k", "type_k", type=_CACHE_TYPES, help="Keys in the KV cache.")
@_list("-ctv", "--cache-type-v", "type_v", type=_CACHE_TYPES, help="Values in the KV cache.")
@_list("-t", "--threads", "n_threads", type=Numbers(1), help="Default: one for each physical core.")
@option("-r", "--repetitions", default=5, type=click.IntRange(1), help="How often each test is run.")
@option("--delay", default=0, type=click.IntRange(0), help="Seconds to wait before each test.")
@option("-o", "--output", default="md", type=_FORMAT, help="What is printed (llama-bench's sql is not).")
@option("-oe", "--output-err", type=_FORMAT, help="The same to stderr, in this format.")
@option("--no-warmup", is_flag=True, help="No untimed run before each test.")
@option("--progress", is_flag=True, help="Say on stderr what is being run.")
@sum_options
@placement_options
def bench(**options: Any) -> int:
    """Measure how fast models read prompts and generate.

    As llama-bench does: lists (1,2 or 1/2), ranges (first-last, first-last+step, first-last*factor) and
    options given again are run in all combinations. Two columns are ours: GB/s is what decode reads of
    weights and KV cache, % bw the share of what memory gives, which is measured in the same run: of a card
    by copies within it, bytes read and written. It is empty where that is not one memory of this machine.
    A model that fits in caches can have more than 100. Of a large vocabulary the best logits come to the
    host, as they do for `ggrun run`; llama-bench takes all.
    """
    for name in _LISTS:
        options[name] = [value for values in options[name] for value in values]
    return _Bench(options).run()


class _Bench:
    """All tests of one command line."""

    def __init__(self, options: dict[str, Any]) -> None:
        from ggrun.bundled import demo_model
        from ggrun.devices.threads import physical_cores

        options["model"] = options["model"] or [demo_model()]
        options["n_threads"] = options["n_threads"] or [physical_cores()]
        self._placement, self._sums = taken(options), sums_taken(options)
        self._options = options
        self._outputs = [_output(options["output"], sys.stdout, options)]
        if options["output_err"]:
            self._outputs.append(_output(options["output_err"], sys.stderr, options))
        self._tests = list(all_tests(options))
        self._begun = self._status = 0
        self._measured: Measured = {}

    def run(self) -> int:
        """Run them; the exit status."""
        if not self._tests:
            raise UsageError("no tests: all of -p, -n and -pg are 0")
        try:
            for setup, group in groupby(self._tests, key=itemgetter(0)):
                self._tried(self._setup, setup, [case for _, case in group])
        except (KeyboardInterrupt, Interrupted):
            self._status = 130
        self._end()
        return self._status

    def _setup(self, setup: Setup, cases: list[Case]) -> None:
        """Load a model and run its tests, but for those that there is no room for."""
        with self._ctrl_c_ends(), compile_progress():
            from ggrun.cli.bench_session import Session

            session = Session(setup, self._placement, self._sums, self._measured)
            fitting = [case for case in cases if self._tried(session.check, case)]
            if fitting:
                session.load(max(case.positions for case in fitting))
        with interruptible(session), closing(session):
            for case in fitting:
                self._case(session, setup, case)

    def _tried(self, work: Callable[..., object], *args: object) -> bool:
        """Whether it was done: what cannot be gets a line, and does not keep the others from running."""
        try:
            work(*args)
        except Interrupted:
            raise
        except GgrunError as error:
            complain(str(error))
            self._status = error.exit_status
            return False
        return True

    def _case(self, session: "Session", setup: Setup, case: Case) -> None:
        """Run one test, and show what came of it."""
        self._begun += 1
        time.sleep(self._options["delay"])
        start = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        samples, threads = session.samples(
            case, self._options["repetitions"], not self._options["no_warmup"], partial(self._tell, case)
        )
        for output in self._outputs:
            output.add(Result(setup, session.facts, session.used, case, start, samples, threads))

    def _tell(self, case: Case, what: str) -> None:
        if self._options["progress"]:
            say(f"ggrun bench: test {self._begun}/{len(self._tests)} ({case.name}): {what}")

    def _end(self) -> None:
        for output in self._outputs:
            output.end()

    @contextmanager
    def _ctrl_c_ends(self) -> Iterator[None]:
        """Let Ctrl+C end the process while a model is loaded, with the output whole; raise from then on.

        An exception would be lost where it comes up inside of Numba.
        """

        def leave(number: int, frame: Any) -> None:
            with suppress(OSError):
                self._end()
            if sys.stderr.isatty():
                os.write(2, b"\n")
            os._exit(130)

        # Whoever started us may have had it ignored.
        heard = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
        try:
            if heard:
                signal.signal(signal.SIGINT, leave)
            yield
        finally:
            if heard:
                signal.signal(signal.SIGINT, signal.default_int_handler)


def _output(format: str, stream: TextIO, options: dict[str, Any]) -> Output:
    """Where results go; the table has a column for each option that is not at its default, or has several."""
    if format != "md":
        return FORMATS[format](stream)
    shown = ("n_batch", "n_ubatch", "type_k", "type_v")
    return Markdown(stream, [name for name in shown if [str(v) for v in options[name]] != _LISTS[name]])
