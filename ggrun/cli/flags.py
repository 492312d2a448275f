"""How flags are read: what texts and files are, their names in the environment, flags of llama.cpp's."""

import os
import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from ggrun.cli.llama_cpp import NOT_BUILT, needless


class Text(click.types.StringParamType):
    """A text in UTF-8. Where it may be given several times, the environment holds one a line."""

    envvar_list_splitter = "\n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text that the bytes of the command line are in UTF-8, whether or not the locale can say it."""
        text = super().convert(value, param, ctx)
        try:
            # What the locale's encoding lacks has come as surrogates, one for each byte.
            return _whole(text)
        except UnicodeError:
            self.fail("not a text in UTF-8", param, ctx)


TEXT = Text()


def _whole(text: str) -> str:
    """A text without surrogates; UnicodeError where they are no UTF-8."""
    try:
        return text.encode("utf-8").decode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(text).decode("utf-8")


class File(click.types.StringParamType):
    """The path of a file or folder. Whoever opens it says what is wrong with it: that is no wrong usage."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; click's usual complaint for what can be none."""
        try:
            return path_of(super().convert(value, param, ctx))
        except ValueError as error:
            self.fail(str(error), param, ctx)


FILE = File()


def path_of(text: str) -> Path:
    """The path that somebody wrote; ValueError, in words, for an empty name and for an address in the web."""
    if not text:
        raise ValueError("a file without a name")
    if re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
        raise ValueError(f"{text!r:.200}: ggrun downloads nothing: give a file of this machine")
    return Path(text)


class Option(click.Option):
    """An option whose errors name the variable, where the value came from the environment."""

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """What click says that a value is for."""
        hint = super().get_error_hint(ctx)
        source = ctx and ctx.get_parameter_source(self.name or "")
        return f"{self.envvar} ({hint})" if source is click.core.ParameterSource.ENVIRONMENT else hint


def option(*names: str, **settings: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option with its twin in the environment, which has the name of the first long flag."""
    long = next(name for name in names if name.startswith("--")).partition("/")[0]
    settings.setdefault("envvar", "GGRUN_" + long[2:].upper().replace("-", "_"))
    settings.setdefault("show_default", settings.get("default") not in (None, ""))
    return click.option(*names, cls=Option, **settings)


class Command(click.Command):
    """A command that refuses an unknown flag of several letters after one dash by its whole name."""

    as_llama_cpp = False

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, but for flags that click would take for several of one letter."""
        takes_value = {
            name: not (isinstance(param, click.Option) and (param.is_flag or param.count))
            for param in self.get_params(ctx)
            for name in (*param.opts, *param.secondary_opts)
        }
        dropped = set[int]()
        for at, name in _unknown(args, takes_value):
            if self.as_llama_cpp and (count := needless(args[at:])):
                dropped.update(range(at, at + count))
                continue
            if name in NOT_BUILT:
                raise click.UsageError(f"{name}: not built yet; ggrun {self.name} -h lists what is", ctx)
            if not name.startswith("--"):
                raise click.NoSuchOption(name, possibilities=get_close_matches(name, takes_value), ctx=ctx)
        return super().parse_args(ctx, [arg for at, arg in enumerate(args) if at not in dropped])


class ModelCommand(Command):
    """One that takes the flags of llama.cpp's programs; nothing comes of those that it can do without."""

    as_llama_cpp = True


def given(name: str) -> bool:
    """Whether an option comes from the command line and not from the environment, which it outdoes."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def _unknown(args: list[str], takes_value: dict[str, bool]) -> Iterator[tuple[int, str]]:
    """The flags that are none: where they are, and their names."""
    rest = iter(enumerate(args))
    for at, arg in rest:
        name, equals, _ = arg.partition("=")
        if arg == "--":
            return
        if name in takes_value:
            if takes_value[name] and not equals:
                next(rest, None)
        elif re.fullmatch(r"-[a-zA-Z][-+]?[0-9.].*", arg) and takes_value.get(arg[:2]):
            continue  # -n5: the number belongs to the letter
        elif arg.startswith("-") and arg != "-":
            yield at, name
