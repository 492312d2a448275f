"""Which tokens end a generation, fill in the middle, or swallow spaces: mostly known by their text.

The names and fix-ups are those of llama.cpp (src/llama-vocab.cpp): GGUF files often label them wrongly.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ggrun.tokens.fields import Fields
from ggrun.tokens.matcher import Matcher
from ggrun.tokens.vocab import Type, Vocab

_END_OF_GENERATION = (
    *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>"),
    *("<|flush|>", "</s>", "<eos>", "[EOS]", "<EOT>", "_<EOT>", "[EOT]", "<end_of_turn>", "<turn|>"),
    *("<|tool_response>", "<|endoftext|>", "<|end_of_text|>", "<end_of_utterance>"),
    *("<｜end▁of▁sentence｜>", "[e~["),
)
# What fills in the middle: the metadata keys, then the names, in order of preference.
_FILL_IN = {
    "pre": (
        "fim_pre prefix",
        "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>",
    ),
    "suf": (
        "fim_suf suffix",
        "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>",
    ),
    "mid": (
        "fim_mid middle",
        "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>",
    ),
    "pad": ("fim_pad", "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]"),
    "rep": ("fim_rep", "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>"),
    "sep": ("fim_sep", "<|file_sep|>"),
}
_ENDING_FILL_IN = ("pad", "rep", "sep")
# gpt-oss speaks in channels: these are part of what it says.
_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
_MARKUP = re.compile(r"[<\[「].{1,80}[>\]」]", re.DOTALL)
_HTML = re.compile(
    "</?(?:table|caption|thead|tbody|tfoot|tr|th|td|[uo]l|li|h[1-6]|p|br|[biu]|em|strong|su[bp]|code|pre"
    "|blockquote)>"
)


@dataclass(frozen=True)
class Specials:
    """The roles of the special tokens, by id."""

    eog: frozenset[int]  # end of generation
    fim: dict[str, int]  # fill in the middle: pre, suf, mid, pad, rep, sep
    lstrip: frozenset[int]  # swallow the white space before them
    rstrip: frozenset[int]  # swallow the white space after them


def derive(vocab: Vocab, fields: Fields, template: str) -> Specials:
    """The roles of a vocabulary's special tokens. `template` is the model's own chat template, '' for none.

    Corrects `vocab.types` of those that the file labels wrongly, and sets `vocab.hidden`.
    """
    ids = _ids_of_known_names(vocab)
    fim = _fill_in(vocab, fields, ids)
    n = len(vocab.texts)
    eog = {fim[role] for role in _ENDING_FILL_IN if role in fim}
    eog |= _retype(vocab, Type.CONTROL, [ids[name] for name in _END_OF_GENERATION if name in ids])
    named = (vocab.eos, fields.token("eot_token_id", n), fields.token("eom_token_id", n))
    eog |= {token for token in named if token is not None}
    _retype(vocab, Type.USER_DEFINED, [ids[name] for name in _SHOWN if name in ids])
    eog -= _wrong_ends(vocab, ids, {vocab.texts[i] for i in eog})
    lstrip, rstrip = _strips(vocab, fields, ids)
    vocab.hidden = frozenset(vocab.of_type(Type.CONTROL, Type.UNKNOWN)) | _structure(vocab, template)
    return Specials(frozenset(eog), fim, lstrip, rstrip)


def for_outsiders(vocab: Vocab) -> dict[str, int]:
    """The special tokens that text from outside may become, by text."""
    shown = (i for i in vocab.of_type(Type.USER_DEFINED) if i not in vocab.hidden)
    return {vocab.texts[i]: i for i in shown if vocab.texts[i]}


def for_ourselves(vocab: Vocab) -> dict[str, int]:
    """All special tokens that text of our own can name, by text.

    A hidden token of one single character is left out: no guard could break it in two (see `guard`).
    """
    return {vocab.texts[i]: i for i in sorted(vocab.hidden) if len(vocab.texts[i]) > 1} | for_outsiders(vocab)


def _structure(vocab: Vocab, template: str) -> set[int]:
    """The USER_DEFINED tokens that are part of how a chat is written, not of what is said in it.

    These are those that look like markup or that the template writes; not plain HTML, spaces and such.
    """
    shown = {vocab.texts[i]: i for i in vocab.of_type(Type.USER_DEFINED) if vocab.texts[i]}
    written = {template[start:end] for start, end, _ in Matcher(shown).find(template)}
    structure = {text for text in written if len(text.strip()) > 3}
    structure |= {text for text in shown if _MARKUP.fullmatch(text.strip())}
    texts = {text for text in structure if not _HTML.fullmatch(text.strip())}
    return {i for i in vocab.of_type(Type.USER_DEFINED) if vocab.texts[i] in texts}


def _ids_of_known_names(vocab: Vocab) -> dict[str, int]:
    known = {*_END_OF_GENERATION, *_SHOWN, "<mask>", "[MASK]", "<unk>", "<s>", "<|plamo:eos|>"}
    for _, names in _FILL_IN.values():
        known.update(names.split())
    return {text: i for i, text in enumerate(vocab.texts) if text in known}


def _fill_in(vocab: Vocab, fields: Fields, ids: dict[str, int]) -> dict[str, int]:
    n = len(vocab.texts)
    found = {}
    for role, (keys, names) in _FILL_IN.items():
        given = (fields.token(f"{key}_token_id", n) for key in keys.split())
        token = next((i for i in given if i is not None), None)
        if token is None:
            token = next((ids[name] for name in names.split() if name in ids), None)
            _retype(vocab, Type.CONTROL, [] if token is None else [token])
        if token is not None:
            found[role] = token
    return found


def _retype(vocab: Vocab, kind: Type, tokens: Iterable[int]) -> set[int]:
    tokens = set(tokens)
    for i in tokens:
        vocab.types[i] = kind.value
    return tokens


def _wrong_ends(vocab: Vocab, ids: dict[str, int], texts: set[str]) -> set[int]:
    """Ends by name that are not ends in this vocabulary: the end of a channel, and a leftover </s>."""
    wrong: set[int] = set()
    calls = bool(texts & {"<|call|>", "<|calls|>"})
    if "<|end|>" in texts and calls and texts & {"<|return|>", "<|flush|>"}:
        wrong |= _retype(vocab, Type.USER_DEFINED, [ids["<|end|>"]])
    if "</s>" in texts and ("<|tool_response>" in texts or "<|plamo:eos|>" in texts):
        wrong |= _retype(vocab, Type.NORMAL, [ids["</s>"]])
    return wrong


def _strips(vocab: Vocab, fields: Fields, ids: dict[str, int]) -> tuple[frozenset[int], frozenset[int]]:
    """(lstrip, rstrip) of `Specials`. Files do not say, so names of models decide, as in llama.cpp."""
    none: frozenset[int] = frozenset()
    name, cut, arch = fields.general("name").lower(), fields.text("pre"), fields.general("architecture")

    def only(text: str) -> frozenset[int]:
        return frozenset([ids[text]] if text in ids else [])

    if any(key in cut for key in ("jina-v2-de", "jina-v2-es", "jina-v2-code")):
        return only("<mask>"), none
    if "nomic-bert-moe" in arch or "jina-bert-v3" in arch:
        return only("<mask>"), none
    if "phi-3" in name or "phi3" in name:
        special = frozenset(vocab.of_type(Type.CONTROL, Type.UNKNOWN, Type.USER_DEFINED))
        return none, (special | only("</s>")) - only("<unk>") - only("<s>") - only("<|endoftext|>")
    return (only("[MASK]") if "modern-bert" in name else none), none
