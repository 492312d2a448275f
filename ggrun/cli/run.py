"""ggrun run: text after a prompt, once or again and again."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from ggrun.cli.options import load, load_options, read_text, sampling, sampling_options
from ggrun.cli.terminal import compile_progress, printable


@click.command(context_settings={"auto_envvar_prefix": "GGRUN"})
@click.option("-p", "--prompt", help="What to begin with; \\n and the like are understood (see --no-escape).")
@click.option(
    "-f", "--file", "prompt_file", type=click.Path(path_type=Path), help="Begin with a file's text."
)
@click.option("-n", "--predict", "--n-predict", "max_tokens", default=-1, show_default=True,
              type=click.IntRange(-1), help="Most tokens; -1: no limit but the context")  # fmt: skip
@click.option(
    "-r", "--reverse-prompt", "stop", multiple=True, help="End before this text; may be given again."
)
@click.option("--ignore-eos", is_flag=True, help="Go on after the model ends.")
@click.option("--escape/--no-escape", default=True, help='Understand \\n, \\t, \\" in the prompt.')
@click.option("--display-prompt/--no-display-prompt", default=True, help="Show the prompt before the text.")
@click.option("--show-timings/--no-show-timings", default=True, help="Times at the end, on stderr.")
@load_options
@sampling_options
def run(**options: Any) -> int:
    """Generate text after a prompt.

    The prompt is -p, -f or what is piped in. In a terminal, without any of them, ggrun asks for one again and
    again: Ctrl+C ends a text, Ctrl+D the session.
    """
    prompt = _prompt(options)
    show = _Output(options)
    how = {name: options.pop(name) for name in ("max_tokens", "stop", "ignore_eos")}
    how["sampling"] = sampling(options)
    with compile_progress():
        llm = load(options)
    with llm:
        if prompt is not None:
            return show.generation(llm, prompt, how)
        for typed in _typed_prompts():
            show.generation(llm, typed, how)
        return 0


class _Output:
    """What a user sees of a generation."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._prompt, self._timings = options.pop("display_prompt"), options.pop("show_timings")

    def generation(self, llm: Any, prompt: str, how: dict[str, Any]) -> int:
        """Show a text as it comes; the exit status: 0, or 130 after Ctrl+C."""
        status, pieces = 0, llm.generate(prompt, **how)
        try:
            if self._prompt:
                self._write(prompt)
            for piece in pieces:
                self._write(piece)
        except KeyboardInterrupt:
            status = 130
        self._write("\n")
        if self._timings:
            print("\n".join(["", *llm.timings.lines()]), file=sys.stderr)
        return status

    def _write(self, text: str) -> None:
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()


def _prompt(options: dict[str, Any]) -> str | None:
    """The prompt that was given, or None when it is to be asked for."""
    text, file, escape = options.pop("prompt"), options.pop("prompt_file"), options.pop("escape")
    if text is not None and file is not None:
        raise click.UsageError("give the prompt by -p or by -f, not both")
    if text is not None:
        return _unescape(text) if escape else str(text)
    if file is not None:
        return read_text(file)
    return None if sys.stdin.isatty() else sys.stdin.read()


def _unescape(text: str) -> str:
    for written, meant in (("\\n", "\n"), ("\\t", "\t"), ("\\r", "\r"), ('\\"', '"'), ("\\'", "'")):
        text = text.replace(written, meant)
    return text


def _typed_prompts() -> Iterator[str]:
    """Lines that the user types, until Ctrl+D or Ctrl+C at the prompt."""
    with suppress(ImportError):
        import readline  # noqa: F401 -- gives input() a history and editing
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            if line := input("> "):
                yield line
    print()
