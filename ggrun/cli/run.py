"""ggrun run: text after a prompt, once or again and again."""

import sys
from contextlib import nullcontext
from typing import Any

import click

from ggrun.cli.flags import FILE, TEXT, ModelCommand, given, option
from ggrun.cli.interrupt import interruptible
from ggrun.cli.options import (
    check_biases,
    load,
    load_options,
    note_long_context,
    read_text,
    sampling,
    sampling_options,
    unescaped,
)
from ggrun.cli.prompt import converse
from ggrun.cli.streams import read_stdin, say, utf8_output
from ggrun.cli.terminal import compile_progress, ctrl_c_interrupts, printable
from ggrun.errors import Interrupted


@click.command(cls=ModelCommand)
@option("-p", "--prompt", type=TEXT, help="What to begin with.")
@option("-f", "--file", "prompt_file", type=FILE,
        help="Begin with a file's text, without its last newline.")  # fmt: skip
@option("-n", "--predict", "--n-predict", "max_tokens", default=-1, type=click.IntRange(-2),
        help="Most tokens; -1, and -2 too: no limit but the context.")  # fmt: skip
@option("-r", "--reverse-prompt", "stop", multiple=True, type=TEXT,
        help="End before this text; may be given again (in the environment: one a line).")  # fmt: skip
@option("--ignore-eos", is_flag=True, help="Go on after the model ends.")
@option("-e", "--escape/--no-escape", default=True, show_default=False,
        help="Understand \\n \\r \\t \\\" \\' \\\\ \\xHH in -p -f -r --dry-sequence-breaker.")  # fmt: skip
@option("--display-prompt/--no-display-prompt", default=True, help="Show the prompt before the text.")
@option("--show-timings/--no-show-timings", default=True, help="Times at the end, on stderr.")
@option(
    "--show-split", is_flag=True, help="What each device has and does, while the text comes and at its end."
)
@load_options
@sampling_options
def run(**options: Any) -> int:
    """Generate text after a prompt.

    The prompt is -p, -f or what is piped in. In a terminal, without any of them, ggrun asks for one again and
    again: Ctrl+C ends a text, or drops a line that is being typed; Ctrl+D ends the session.
    """
    _unescape(options)
    prompt = _prompt(options)
    utf8_output()
    show = _Output(options)
    options["metered"] = options.pop("show_split")
    how = {name: options.pop(name) for name in ("max_tokens", "stop", "ignore_eos")}
    how["max_tokens"] = max(how["max_tokens"], -1)
    how["sampling"] = sampling(options)
    with compile_progress():
        llm = load(options)
    ctrl_c_interrupts()
    with interruptible(llm) as answered, llm:
        check_biases(how["sampling"], llm)
        note_long_context(llm)
        if prompt is not None:
            return show.generation(llm, prompt, how)
        converse(lambda typed: show.generation(llm, typed, how), answered)
        return 0


class _Output:
    """What a user sees of a generation."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._prompt, self._timings = options.pop("display_prompt"), options.pop("show_timings")

    def generation(self, llm: Any, prompt: str, how: dict[str, Any]) -> int:
        """Show a text as it comes; the exit status: 0, or 130 after Ctrl+C."""
        status, pieces, split = 0, llm.generate(prompt, **how), _split_view(llm)
        try:
            with split.live() if split else nullcontext():
                if self._prompt:
                    self._write(prompt)
                for piece in pieces:
                    self._write(piece)
                    if split:
                        split.refresh()
        except (KeyboardInterrupt, Interrupted):
            status = 130
        self._write("\n")
        ends = [*(llm.timings.lines() if self._timings else ()), *(split.lines() if split else ())]
        if ends:
            say("\n".join(["", *ends]))
        return status

    def _write(self, text: str) -> None:
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()


def _split_view(llm: Any) -> Any:
    """A SplitView, where times are measured for one."""
    if llm.meter is None:
        return None
    from ggrun.cli.split_view import SplitView

    return SplitView(llm.planned, llm.meter)


def _unescape(options: dict[str, Any]) -> None:
    """Put what escapes mean in their places, as llama.cpp does; a file of a prompt becomes the prompt."""
    understood = unescaped if options.pop("escape") else str
    text, file = options.pop("prompt"), options.pop("prompt_file")
    if text is not None and file is not None:
        if given("prompt") == given("prompt_file"):
            raise click.UsageError("give the prompt by -p or by -f, not both")
        text, file = (text, None) if given("prompt") else (None, file)
    if file is not None:
        text = read_text(file).removesuffix("\n")
    options["prompt"] = None if text is None else understood(text)
    for name in ("stop", "dry_sequence_breaker"):
        options[name] = tuple(map(understood, options[name]))


def _prompt(options: dict[str, Any]) -> str | None:
    """The prompt that was given, or None when it is to be asked for."""
    text: str | None = options.pop("prompt")
    return text if text is not None or sys.stdin.isatty() else read_stdin()
