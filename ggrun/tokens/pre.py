"""How each `tokenizer.ggml.pre` cuts text into words before BPE merges them.

The regular expressions are llama.cpp's (src/llama-vocab.cpp), or those of the models' own tokenizer.json
where llama.cpp's only approximate them for lack of Unicode classes; the syntax is Oniguruma's. Every match of
the first one becomes a piece of its own, then the next one cuts the pieces, and so on.
"""

from dataclasses import dataclass

from ggrun.tokens.errors import TokenizerError


@dataclass(frozen=True)
class Pre:
    """One way to prepare text for BPE."""

    regexes: tuple[str, ...]
    byte_level: bool = True  # the vocabulary is in GPT-2's byte alphabet; else in plain text
    escape_spaces: bool = False  # spaces are written ▁
    ignore_merges: bool = False  # a word that is a token is that token, whatever the merges say
    add_bos: bool = False
    groups_digits: bool = False  # in threes from the right, looking ahead to the end of the number


# Parts.
_CONTRACTION = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_LEAD = r"[^\r\n\p{L}\p{N}]?"  # one sign or space that sticks to the word after it
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_ASCII_SIGN = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_THREE_RIGHT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"


def _words(number: str, end: str = _SPACES, letters: str = r"\p{L}") -> str:
    """The cut of tiktoken's cl100k: contractions, words, numbers, signs, white space."""
    return rf"{_CONTRACTION}|{_LEAD}[{letters}]+|{number}| ?[^\s{letters}\p{{N}}]+[\r\n]*|{end}"


def _cased(number: str, contraction: str, but: str = "") -> str:
    """The cut of tiktoken's o200k: a word also ends where capital letters follow small ones."""
    upper, lower = f"[{_UPPER}{but}]", f"[{_LOWER}{but}]"
    words = f"{_LEAD}{upper}*{lower}+{contraction}|{_LEAD}{upper}+{lower}*{contraction}"
    return rf"{words}|{number}| ?[^\s\p{{L}}\p{{N}}]+[\r\n{'' if but else '/'}]*|{_SPACES}"


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_LLAMA3 = _words(r"\p{N}{1,3}")
_QWEN2 = _words(r"\p{N}")
_DEEPSEEK_WORD = rf"{_ASCII_SIGN}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+"
_DEEPSEEK3 = rf"{_DEEPSEEK_WORD}[\r\n]*|{_SPACES}"
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_JAIS2_SPACES = r"\s*[\r\n]+" + "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
_GPT4O = _cased(r"\p{N}{1,3}", _CONTRACTION + "?")
_DEEPSEEK_HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# Letters of the scripts that have case, as of the Unicode version deepseek-llm was made with.
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf"
    "\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d"
    "\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4"
    "\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_AFMOE_SCRIPTS = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
    "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af"
    "\u1100-\u11ff]+"
)
_YOUTU_SCRIPTS = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
    "|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
)

# The regular expressions of each family, and the names of `tokenizer.ggml.pre` that use them.
_FAMILIES: list[tuple[str, tuple[str, ...]]] = [
    (
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe"
        " chatglm-bpe glm4 glm5",
        (_LLAMA3,),
    ),
    (
        "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
        (_QWEN2,),
    ),
    (
        "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jina-v1-en"
        " jina-v2-code roberta-bpe exaone4 mpt olmo jais trillion granite-docling",
        (_GPT2,),
    ),
    (
        "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2",
        (r"\p{N}", _GPT2),
    ),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", (r"\p{N}{1,3}", _CJK, _DEEPSEEK3)),
    ("gpt-4o llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m", (_GPT4O,)),
    ("tiny_aya cohere2moe", (r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O)),
    ("tekken", (_cased(r"\p{N}", ""),)),
    (
        "kimi-k2",
        (r"[\p{Han}]+|" + _cased(r"\p{N}{1,3}", _CONTRACTION + "?", but=r"&&[^\p{Han}]"),),
    ),
    ("youtu", (_YOUTU_SCRIPTS, _cased(r"\p{N}", _CONTRACTION + "?"))),
    ("poro-chat bloom gpt3-finnish", (_BLOOM,)),
    ("viking", (_BLOOM, r"\p{N}")),
    ("gemma4 granite-embed-multi-311m sarvam-moe", (r"[^\n]+|[\n]+",)),
    ("laguna", (r"[^\n]+|[\n]+", _QWEN2)),
    ("whitespace", (r"\S+",)),
    ("qwen35", (_words(r"\p{N}", letters=r"\p{L}\p{M}"),)),
    ("minicpm5", (r"\p{N}{1,3}", _words(r"\p{N}+"))),
    ("jais-2", (_words(r"\p{N}{1,3}", end=rf"{_JAIS2_SPACES}|\s{{1,2}}(?!\S)|\s{{1}}"),)),
    ("ufakzeka", (rf"{_LEAD}\p{{L}}+|\p{{N}}|{_SIGNS}|{_SPACES}",)),
    (
        "bailingmoe bailingmoe2 llada-moe",
        (
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"
            rf"|{_LEAD}\p{{L}}+|\p{{N}}|{_SIGNS}|\s*[\r\n]|\s+(?!\S)|\s+",
        ),
    ),
    (
        "seed-coder",
        (rf"{_CONTRACTION}|{_LEAD}\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",),
    ),
    (
        "exaone-moe",
        (
            rf"{_CONTRACTION}|{_LEAD}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        ),
    ),
    ("spark2_5", (r"\p{N}{1,3}", _CJK, rf"{_DEEPSEEK_WORD}|[\r\n]|\s+(?!\S)|\s+", r"\p{N}")),
    ("afmoe", (_THREE_RIGHT, _AFMOE_SCRIPTS, _DEEPSEEK3)),
    ("superbpe", (r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    ("falcon", (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    ("default", (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    (
        "chameleon",
        (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
    ),
    (
        "deepseek-llm",
        (
            "[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"(?<!\s)\s+$",  # only from the start of a run of spaces: without that it takes quadratic time
            _DEEPSEEK_HAN,
            r"\p{N}+",
        ),
    ),
    ("deepseek-coder", ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_HAN, r"\p{N}")),
]
_REGEXES = {name: regexes for names, regexes in _FAMILIES for name in names.split()}

_PLAIN_TEXT = {"gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace"}
_ESCAPE_SPACES = _PLAIN_TEXT - {"whitespace"}
_GROUP_DIGITS = {"tiny_aya", "cohere2moe", "afmoe", "superbpe"}
_LLAMA3_FAMILY = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"}
_ADD_BOS = _LLAMA3_FAMILY | {"jina-v5-nano", "tekken", "chameleon"}
_IGNORE_MERGES = _LLAMA3_FAMILY | {"jina-v5-nano", "tekken", "minicpm5", "youtu", "glm4", "glm5"}
_IGNORE_MERGES |= {"granite-embed-multi-97m"}

NAMES = tuple(sorted(_REGEXES))


def find(name: str) -> Pre:
    """The preparation that `tokenizer.ggml.pre` names; `TokenizerError` for a name we do not know."""
    if name not in _REGEXES:
        raise TokenizerError(f"pre-tokenizer {name!r} (tokenizer.ggml.pre) is not known")
    return Pre(
        regexes=_REGEXES[name],
        byte_level=name not in _PLAIN_TEXT,
        escape_spaces=name in _ESCAPE_SPACES,
        ignore_merges=name in _IGNORE_MERGES,
        add_bos=name in _ADD_BOS,
        groups_digits=name in _GROUP_DIGITS,
    )
