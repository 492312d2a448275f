"""Options that several commands share, with llama.cpp's names, defaults and meanings."""

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from ggrun.cli.flags import FILE, TEXT, given, option
from ggrun.cli.placement import placement_options, sum_options, sums_taken, taken
from ggrun.cli.streams import say
from ggrun.cli.terminal import ShownProgress
from ggrun.errors import GgrunError, UsageError

Command = Callable[..., Any]

_RANDOM_SEED = 0xFFFFFFFF  # what llama.cpp makes of -1
_ESCAPE = re.compile(rb"""\\(?:([nrt"'\\])|x([0-9a-fA-F]{2}))""")
_MEANT = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}

# Spelled here and not imported: the engine takes half a second to import, and help must not.
_CACHE_TYPES = click.Choice(["f16", "f32", "bf16", "q8_0"])


_LOAD = [
    option(
        "-m",
        "--model",
        type=FILE,
        help="GGUF file, or any shard. Default: the demo model.",
    ),
    option(
        "-c",
        "--ctx-size",
        "n_ctx",
        default=0,
        type=click.IntRange(0),
        help="Context; 0: the model's, if it fits.",
    ),
    option(
        "-b", "--batch-size", "n_batch", default=2048, type=click.IntRange(1), help="Most tokens of a batch."
    ),
    option(
        "-ub",
        "--ubatch-size",
        "n_ubatch",
        default=512,
        type=click.IntRange(1),
        help="Tokens computed together.",
    ),
    option("-t", "--threads", type=click.IntRange(1), help="Default: one for each physical core."),
    option("-ctk", "--cache-type-k", default="f16", type=_CACHE_TYPES, help="Keys in the KV cache."),
    option("-ctv", "--cache-type-v", default="f16", type=_CACHE_TYPES, help="Values in the KV cache."),
]

_SAMPLE = [
    option("--temp", default=0.8, help="Temperature; 0: always the most probable token."),
    option("--top-k", default=40, help="The k most probable; 0: all."),
    option("--top-p", default=0.95, help="The most probable that make up p; 1: all."),
    option("--min-p", default=0.05, help="Those at least p times as probable as the first; 0: all."),
    option("--typical", "--typical-p", "typical", default=1.0, help="Locally typical sampling; 1: off."),
    option(
        "--top-nsigma", "--top-n-sigma", "top_n_sigma", default=-1.0, help="Within n deviations; -1: off."
    ),
    option("--xtc-probability", default=0.0, help="How often to exclude top choices; 0: off."),
    option("--xtc-threshold", default=0.1, help="Choices above this are excluded; above 0.5: off."),
    option("--repeat-last-n", default=64, help="Tokens that penalties look at; -1: the whole context."),
    option("--repeat-penalty", default=1.0, help="1: off."),
    option("--presence-penalty", default=0.0, help="0: off."),
    option("--frequency-penalty", default=0.0, help="0: off."),
    option("--dry-multiplier", default=0.0, help="Don't repeat yourself; 0: off."),
    option("--dry-base", default=1.75, help="How fast the penalty grows with the length of a repetition."),
    option("--dry-allowed-length", default=2, help="Repetitions up to this length are free."),
    option("--dry-penalty-last-n", default=-1, help="Tokens that DRY looks at; -1: the whole context."),
    option(
        "--dry-sequence-breaker",
        multiple=True,
        type=TEXT,
        help='Ends a repetition; replaces the defaults (newline : " *); in the environment: one a line.',
    ),
    option(
        "-l",
        "--logit-bias",
        multiple=True,
        type=TEXT,
        metavar="ID(+|-)BIAS",
        help="Make a token more or less likely; in the environment: one a line.",
    ),
    option("--grammar", default="", type=TEXT, help="GBNF that the text has to follow."),
    option("--grammar-file", type=FILE, help="The same, from a file."),
    option("-j", "--json-schema", default="", type=TEXT, help="The text is JSON by it; {}: any JSON."),
    option("-jf", "--json-schema-file", type=FILE, help="The same, from a file."),
    option("-s", "--seed", default=-1, help="-1, and 4294967295 too: a new one every time."),
]


def load_options(command: Command) -> Command:
    """How a model is loaded, and where its layers run; see load."""
    return _apply(_LOAD, sum_options(placement_options(command)))


def sampling_options(command: Command) -> Command:
    """How tokens are chosen; see sampling."""
    return _apply(_SAMPLE, command)


def _apply(options: list[Callable[[Command], Command]], command: Command) -> Command:
    for added in reversed(options):
        command = added(command)
    return command


def load(options: dict[str, Any]) -> Any:
    """Take the load options out of `options` and load the model: a ggrun.LLM."""
    from ggrun.bundled import demo_model
    from ggrun.llm import LLM

    keys = ("model", "n_ctx", "n_batch", "n_ubatch", "threads", "cache_type_k", "cache_type_v")
    model, n_ctx, n_batch, n_ubatch, threads, keys_type, values_type = (options.pop(key) for key in keys)
    placement = taken(options)
    return LLM(
        model or demo_model(), n_ctx=n_ctx, n_ubatch=min(n_ubatch, n_batch), threads=threads,
        cache_type_k=keys_type, cache_type_v=values_type,
        devices=placement.pop("hardware"), metered=options.pop("metered", False), **placement,
        **sums_taken(options), progress=ShownProgress(only_in_terminals=True),
    )  # fmt: skip


def note_long_context(llm: Any) -> None:
    """Say it where the context is longer than the model was made for: that makes little sense, mostly."""
    if llm.n_ctx > llm.config.context:
        say(f"the model was made for a context of {llm.config.context}, and has {llm.n_ctx} here")


def check_biases(options: Any, llm: Any) -> None:
    """UsageError where sampling options make a token more or less likely that the model does not have."""
    n_vocab = llm.tokenizer.n_vocab
    for token in options.logit_bias:
        if token >= n_vocab:
            raise UsageError(f"--logit-bias: there is no token {token}: the model has 0 to {n_vocab - 1}")


def sampling(options: dict[str, Any]) -> Any:
    """Take the sampling options out of `options`: a ggrun.SamplingOptions."""
    from ggrun.engine.sampler import SamplingOptions

    for name in ("grammar", "json_schema"):
        options[name] = _text_or_file(name, options.pop(name), options.pop(f"{name}_file"))
    taken = {
        name: options.pop(name) for name in list(options) if name in SamplingOptions.__dataclass_fields__
    }
    if taken["seed"] == _RANDOM_SEED:
        taken["seed"] = -1
    taken["logit_bias"] = dict(map(_bias, taken["logit_bias"]))
    if breakers := options.pop("dry_sequence_breaker"):
        taken["dry_sequence_breakers"] = tuple(breakers)
    return SamplingOptions(**taken)


def read_text(file: Path) -> str:
    """A file's text; GgrunError when it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise GgrunError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise GgrunError(f"{file}: not a text in UTF-8") from None


def unescaped(text: str) -> str:
    """Text with \\n, \\t, \\xHH (a byte of UTF-8) and so on put in their places; others stay as they are."""

    def meant(match: re.Match[bytes]) -> bytes:
        letter, byte = match.groups()
        return bytes.fromhex(byte.decode()) if byte else _MEANT.get(letter, letter)

    try:
        return _ESCAPE.sub(meant, text.encode()).decode()
    except UnicodeDecodeError:
        raise UsageError(f"{text!r}: its \\x escapes make no text in UTF-8") from None


def _text_or_file(name: str, text: str, file: Path | None) -> str:
    flag = "--" + name.replace("_", "-")
    if file is None or (given(name) and not given(f"{name}_file")):
        return text
    if text and given(name) == given(f"{name}_file"):
        raise UsageError(f"give {flag} or {flag}-file, not both")
    if not (text := read_text(file)).strip():
        raise UsageError(f"{flag}-file {file}: nothing is in it")
    return text


def _bias(text: str) -> tuple[int, float]:
    """'15043+1.5' or '15043-inf'."""
    if parts := re.fullmatch(r"([0-9]+)([+-].+)", text):
        with suppress(ValueError):
            return int(parts[1]), float(parts[2])
    raise UsageError(f"--logit-bias {text!r}: it must be a token id, + or -, and a number")
