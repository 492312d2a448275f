"""ggrun perplexity: how well a model foretells a text, counted and shown as by llama-perplexity."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from ggrun.cli.flags import FILE, TEXT, ModelCommand, given, option
from ggrun.cli.interrupt import interruptible
from ggrun.cli.options import load, load_options, note_long_context, unescaped
from ggrun.cli.streams import say
from ggrun.cli.terminal import compile_progress, ctrl_c_interrupts
from ggrun.errors import GgrunError, Interrupted


# The options are those of all commands; only the context is another one where none is given.
@click.command(cls=ModelCommand, context_settings={"default_map": {"n_ctx": 512}})
@option("-f", "--file", "prompt_file", type=FILE,
        help="The text: a file, without its last newline.")  # fmt: skip
@option("-p", "--prompt", type=TEXT, help="The text itself.")
@option("-e", "--escape/--no-escape", default=False, show_default=False,
        help="Understand \\n \\r \\t \\\" \\' \\\\ \\xHH in the text.")  # fmt: skip
@option("--chunks", default=-1, type=click.IntRange(-1), help="Most windows; -1: all.")
@load_options
def perplexity(**options: Any) -> int:
    """Measure how well a model foretells a text: lower is better.

    The text is cut into windows as long as the context (-c); of each, the second half is scored. It takes two
    windows or more. Figures are comparable where text, vocabulary and -c are the same, with llama.cpp's too.
    """
    text, chunks = _text(options), options.pop("chunks")
    with compile_progress():
        llm = load(options)
    ctrl_c_interrupts()
    with interruptible(llm), llm:
        note_long_context(llm)
        try:
            _show(llm.perplexity(text, window=llm.n_ctx, chunks=chunks), llm.n_ctx)
        except (KeyboardInterrupt, Interrupted):
            print()
            return 130
    return 0


def _show(estimates: Any, window: int) -> None:
    """The perplexity so far after each window, and that of the text in the end."""
    start = time.perf_counter()
    for estimate in estimates:
        seconds = time.perf_counter() - start
        if estimate.window == 1:
            left = timedelta(seconds=round(seconds * (estimate.windows - 1)))
            say(f"{estimate.windows} windows of {window} tokens, {seconds:.2f} s each: {left} left")
        print(f"[{estimate.window}]{estimate.value:.4f},", end="", flush=True)
    print(f"\nFinal estimate: PPL = {estimate.value:.4f} +/- {estimate.error:.5f}", flush=True)
    tokens = estimate.windows * window
    say(f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:.1f} tokens/s")


def _text(options: dict[str, Any]) -> str:
    """The text to be measured."""
    understood = unescaped if options.pop("escape") else str
    text, file = options.pop("prompt"), options.pop("prompt_file")
    if text is None and file is None:
        raise click.UsageError("give the text by -f FILE or by -p TEXT")
    if text is not None and file is not None and given("prompt") == given("prompt_file"):
        raise click.UsageError("give the text by -f or by -p, not both")
    if file is None or (text is not None and given("prompt")):
        return understood(text)
    return understood(_file_text(file).removesuffix("\n"))


def _file_text(file: Path) -> str:
    """A file's text with its own line ends, which are tokens like others; GgrunError if it cannot be read."""
    try:
        return file.read_bytes().decode()
    except OSError as error:
        raise GgrunError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise GgrunError(f"{file}: not a text in UTF-8") from None
