"""Grammars and JSON schemas: what is generated follows them; what cannot be followed gets one clear line."""

import itertools
import json
import re
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggrun import LLM, GgrunError, SamplingOptions, Tokenizer, UsageError
from ggrun.bundled import demo_model
from ggrun.engine.gbnf import MAX_DEPTH
from ggrun.engine.grammar import MAX_REFERENCES, Grammar, GrammarVocabulary
from tests.shared import vocab

TOKENIZER = Tokenizer.from_gguf(demo_model())
VOCABULARY = GrammarVocabulary(TOKENIZER)
JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]{1,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(demo_model()) as model:
        yield model


def texts(llm: LLM, max_tokens: int = -1, **options: str) -> Iterator[str]:
    """What is generated at temperature 0, and from some seeds."""
    for how in ({"temp": 0.0}, *({"temp": 1.5, "top_k": 0, "min_p": 0.0, "seed": s} for s in range(4))):
        yield "".join(llm.generate("Once upon a time", max_tokens=max_tokens, **how, **options))


def takes(grammar: Grammar, text: str | bytes) -> bool:
    """Whether a text can be written byte by byte, and end there."""
    spelled = text.encode() if isinstance(text, str) else text
    for byte in spelled:
        token = next(i for i in range(TOKENIZER.n_vocab) if TOKENIZER.token_bytes(i) == bytes([byte]))
        if not allowed(grammar)[token]:
            return False
        grammar.accept(token)
    return bool(allowed(grammar)[TOKENIZER.eos])


def allowed(grammar: Grammar) -> np.ndarray:
    logits = np.zeros(TOKENIZER.n_vocab, np.float32)
    grammar.allow(logits)
    return np.isfinite(logits)


# ---------------------------------------------------------------- what is generated


@pytest.mark.parametrize(
    ("grammar", "regex"),
    [
        ('root ::= ("yes" | "no") " " [0-9]{1,9}', "(yes|no) [0-9]{1,9}"),
        ("root ::= word{3} [.!?]\nword ::= [a-z]{2,6} sep\nsep ::= [ -]", "([a-z]{2,6}[ -]){3}[.!?]"),
        ('root ::= [a-z]{1,8} "xé" [à-ü]{1,2} "\\u65e5"', "[a-z]{1,8}xé[à-ü]{1,2}日"),
        ("root ::= [^\\x00-\\uFFFF]{2}", "[\U00010000-\U0010ffff]{2}"),
        ('root ::= "é" | "日本" | "\\U0001F600"', "é|日本|\U0001f600"),
        ('root ::= . [^\\n]? "</s>"', "(?s:.)[^\n]?</s>"),
        ('root ::= ""', ""),
    ],
)  # fmt: skip
def test_texts_follow_a_grammar_and_end(llm: LLM, grammar: str, regex: str) -> None:
    for text in texts(llm, grammar=grammar):
        assert re.fullmatch(regex, text), text


def test_a_grammar_that_nests(llm: LLM) -> None:
    for text in texts(llm, 30, grammar='root ::= "(" ( root | [a-z]{1,3} ){1,2} ")"'):
        assert re.fullmatch(r"[(a-z)]*", text)
        depth = np.cumsum([(c == "(") - (c == ")") for c in text])
        assert (depth[:-1] > 0).all()


def test_json_by_schema(llm: LLM) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "kind": {"enum": ["king", "dragon"]},
            "age": {"type": "integer", "minimum": 0, "maximum": 300},
            "friends": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
            "alive": {"type": "boolean"},
        },
        "required": ["name", "kind", "age", "friends"],
        "additionalProperties": False,
    }
    for text in [*texts(llm, json_schema=json.dumps(schema)), *texts(llm, json_schema=schema)]:
        tale = json.loads(text)
        assert {"name", "kind", "age", "friends"} <= tale.keys() <= schema["properties"].keys()
        assert isinstance(tale["name"], str)
        assert tale["kind"] in ("king", "dragon")
        assert type(tale["age"]) is int
        assert 0 <= tale["age"] <= 300
        assert all(isinstance(friend, str) for friend in tale["friends"])
        assert len(tale["friends"]) <= 2
        assert type(tale.get("alive", True)) is bool


def test_the_end_may_come_exactly_where_the_grammar_can_end() -> None:
    grammar = Grammar(VOCABULARY, 'root ::= "ab" "c"?')
    for letter, ends in (("a", False), ("b", False), ("c", True)):
        assert allowed(grammar)[TOKENIZER.eos] == ends
        assert not grammar.complete
        grammar.accept(TOKENIZER.encode(letter, add_special=False)[0])
    assert grammar.complete
    assert np.flatnonzero(allowed(grammar)).tolist() == sorted(TOKENIZER.eog)


def test_the_longest_tokens_may_come_and_no_others() -> None:
    can = allowed(Grammar(VOCABULARY, 'root ::= "the king" [^\\n]*'))
    for i in range(TOKENIZER.n_vocab):
        spelled = TOKENIZER.token_bytes(i)
        assert can[i] == (0 < len(spelled) <= 8 and b"the king".startswith(spelled)), spelled


def test_control_tokens_are_never_text() -> None:
    grammar = Grammar(VOCABULARY, "root ::= .*")
    assert [i for i in np.flatnonzero(~allowed(grammar)) if TOKENIZER.token_bytes(i)[:1] < b"\x80"] == [
        i for i in range(TOKENIZER.n_vocab) if TOKENIZER.is_control(i) and i not in TOKENIZER.eog
    ]


def test_the_prompt_is_no_part_of_the_grammar(llm: LLM) -> None:
    text = "".join(llm.generate("The king 123 {", grammar="root ::= [!-/]{5}", repeat_penalty=1.3, temp=0))
    assert re.fullmatch("[!-/]{5}", text)


def test_a_grammar_ends_even_if_the_model_must_go_on(llm: LLM) -> None:
    assert "".join(llm.generate("Once", grammar='root ::= "a" | "b"', ignore_eos=True)) in ("a", "b")
    tokens = list(llm.generate_tokens(llm.tokenize("Once"), grammar='root ::= "end"', seed=1))
    assert llm.detokenize(tokens) == "end"


def test_a_seed_reproduces(llm: LLM) -> None:
    runs = ["".join(llm.generate("The", grammar="root ::= [a-z ]{40}", seed=s)) for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_biases_that_leave_nothing(llm: LLM) -> None:
    bias = {i: -np.inf for i in range(TOKENIZER.n_vocab) if b"7" in TOKENIZER.token_bytes(i)}
    with pytest.raises(GgrunError, match="no token of the model can come next"):
        list(llm.generate("x", grammar='root ::= "7"', logit_bias=bias))


def test_logits_beyond_the_vocabulary() -> None:
    logits = np.zeros(TOKENIZER.n_vocab + 100, np.float32)
    Grammar(VOCABULARY, "root ::= .").allow(logits)
    assert np.isneginf(logits[TOKENIZER.n_vocab :]).all()


def test_a_vocabulary_without_an_end() -> None:
    class Endless:
        n_vocab, eog = TOKENIZER.n_vocab, frozenset[int]()
        is_control, token_bytes = TOKENIZER.is_control, TOKENIZER.token_bytes

    grammar = Grammar(GrammarVocabulary(Endless()), 'root ::= "a" "b"?')  # type: ignore[arg-type]
    for letter in "ab":
        (token,) = TOKENIZER.encode(letter, add_special=False)
        assert allowed(grammar)[token]
        grammar.accept(token)
    assert grammar.complete


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "phi-3"])
def test_other_vocabularies(name: str) -> None:
    tokenizer = Tokenizer.from_gguf(vocab() / f"ggml-vocab-{name}.gguf")
    grammar, text = Grammar(GrammarVocabulary(tokenizer), 'root ::= " "? [a-é 日]+'), "été de 日"
    for token in tokenizer.encode(text, add_special=False):
        logits = np.zeros(tokenizer.n_vocab, np.float32)
        grammar.allow(logits)
        assert logits[token] == 0
        grammar.accept(token)


# ---------------------------------------------------------------- the language


def test_json_in_gbnf() -> None:
    for text in ('{"a": [1, -2.5e10, {"b": null}], "c": true}', '{ "\\u00e9é\\n日":\n  "" }', "{}"):
        assert takes(Grammar(VOCABULARY, JSON), text)
    for text in ("[]", '{"a": 1', '{"a": .5}', '{a: 1}', '{"a": 1}}'):  # fmt: skip
        assert not takes(Grammar(VOCABULARY, JSON), text)


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        ('root ::= [a-z]+ "x"', ["abx", "xx"], ["x", "ab"]),
        ('root ::= "a" "b" "c" | "ab" "d"', ["abc", "abd"], ["ab"]),
        ('root ::= root "-" [0-9] | [0-9]', ["1", "1-2-3"], ["1-", "-1"]),
        ("root ::= [-a] [a-] [a\\x2dz] []\\x5d] [/]".replace("[]", "[\\]"), ["-a-]/", "aaz]/"], ["-am]/"]),
        ("root ::= [^]{2}", ["a]", "\n."], ["a"]),
        ('root ::= ( # one\n "a" # ")"\n | \n "b" )+ # two\nother ::= "unused"', ["ab"], ["", "c"]),
        (
            'root ::= "a"{2} "b"{1,} "c"{0,2} "d"{ 1 , 2 }',
            ["aabd", "aabbbccdd"],
            ["abd", "aabcccd", "aabddd"],
        ),
        ('root ::= ("a"? "b"*)*', ["", "abba", "bbb"], ["c"]),
        ('root ::= a-B_2 a_b\na-B_2 ::= "x"\na_b ::= "y"', ["xy"], ["x"]),
    ],
)
def test_notation(grammar: str, good: list[str], bad: list[str]) -> None:
    for text in good:
        assert takes(Grammar(VOCABULARY, grammar), text), text
    for text in bad:
        assert not takes(Grammar(VOCABULARY, grammar), text), text


def expressions() -> st.SearchStrategy[tuple[str, str]]:
    """The same language in GBNF and as a regex of Python."""
    leaves = st.sampled_from([('"a"', "a"), ('"ab"', "ab"), ("[a-b]", "[ab]"), ("[^a]", "[^a]"), ('""', "")])

    def more(inner: st.SearchStrategy[tuple[str, str]]) -> st.SearchStrategy[tuple[str, str]]:
        two = st.tuples(inner, inner)
        repeated = st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{2,}"]))
        return (
            two.map(lambda p: (f"({p[0][0]} {p[1][0]})", f"(?:{p[0][1]}{p[1][1]})"))
            | two.map(lambda p: (f"({p[0][0]} | {p[1][0]})", f"(?:{p[0][1]}|{p[1][1]})"))
            | repeated.map(lambda p: (f"({p[0][0]}){p[1]}", f"(?:{p[0][1]}){p[1]}"))
        )

    return st.recursive(leaves, more, max_leaves=6)


@settings(max_examples=60)
@given(expression=expressions())
def test_the_language_is_that_of_a_regex(expression: tuple[str, str]) -> None:
    grammar, regex = expression
    for letters in itertools.chain(*(itertools.product("abc", repeat=n) for n in range(4))):
        text = "".join(letters)
        want = re.fullmatch(regex, text) is not None
        assert takes(Grammar(VOCABULARY, f"root ::= {grammar}"), text) == want, text


# ---------------------------------------------------------------- what cannot be followed


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (" ", "no rule root"),
        ("root", "line 1, column 1, at 'root': a rule"),
        ('a ::= "x"', "no rule root"),
        ('root ::= "x"\n  other', "line 2, column 3, at 'other': there is no rule other"),
        ("root ::= (", "not closed"),
        ("root ::= )", "nothing is open"),
        ('root ::= "a', "line 1, column 10"),
        ("root ::= [a", "line 1, column 10"),
        ("root ::= []", "no characters"),
        ("root ::= [z-a]", "z-a is the wrong way round"),
        ('root ::= "\\q"', "escape"),
        ('root ::= "\\ud800"', "no character"),
        ('root ::= "\\U00110000"', "no character"),
        ("root ::= *", "nothing to repeat"),
        ('root ::= "a"{2', "no part of a grammar"),
        ('root ::= "a"{3,2}', "less than"),
        ('root ::= "a"{99999999999999999999}', "repetitions"),
        ('root ::= "a"{9999999}', "repetitions"),
        ("root ::= <think>", "no part of a grammar"),
        ('root ::= "a"\nroot ::= "b"', "line 2, column 1, .*: this rule is there already"),
        ("root ::= root", "no token of the model can come next"),
        ("root ::= " + "(" * MAX_DEPTH + '"a"' + ")" * MAX_DEPTH, "nest more than"),
        ("root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1}" for i in range(9999)) + '\nr9999 ::= "a"', "nest"),
        ("root ::= " + '"aa" ' * 40_000, "too long"),
    ],
    ids=lambda v: v[:20],
)
def test_malformed_grammars(grammar: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        Grammar(VOCABULARY, grammar)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("{", "no JSON: .* line 1 column 2"),
        ('{"a": NaN}', "NaN"),
        ("[]", "must be an object"),
        ("false", "nsatisfiable"),
        ('{"type": "frob"}', "frob"),
        ('{"enum": []}', "nsatisfiable"),
        ('{"$ref": "#/nowhere"}', "nowhere"),
        ('{"$ref": "#"}', "no token of the model can come next"),
        ('{"$ref": "http://127.0.0.1:9/schema"}', "retriev"),
        ('{"type": "string", "pattern": "("}', "unclosed group"),
        ("[" * 9999, "nested too deep"),
        ('{"anyOf": [' * 200 + "{}" + "]}" * 200, "recursion limit"),
        (json.dumps({"anyOf": [{"$ref": "#/x"}] * (MAX_REFERENCES + 1)}), "references"),
    ],
    ids=lambda v: v[:20],
)  # fmt: skip
def test_malformed_schemas(schema: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        Grammar(VOCABULARY, json_schema=schema)
    assert "\n" not in str(caught.value)


def test_deep_ones_that_are_fine() -> None:
    deep = MAX_DEPTH - 10
    assert takes(Grammar(VOCABULARY, "root ::= " + "(" * deep + '"a"' + ")" * deep), "a")
    last = MAX_REFERENCES - 10
    chain = {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}, {"const": i}]} for i in range(last)}
    schema = {"$ref": "#/$defs/a0", "$defs": chain | {f"a{last}": {"type": "null"}}}
    assert takes(Grammar(VOCABULARY, json_schema=json.dumps(schema)), "null")


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "a" root "b" | "a" root',
        'root ::= a{1000}\na ::= b{1000}\nb ::= "a"{1000} | "aa"{999}',
        'root ::= (("a"* "a"*)* ("a"* "a"?)+)*',
        'root ::= "a" root | "a"',
    ],
)
def test_a_runaway_grammar_ends_in_time_or_goes_on(grammar: str) -> None:
    """Whatever a grammar makes of a long text, it is a text or one line."""
    token = TOKENIZER.encode("a", add_special=False)[0]
    try:
        followed = Grammar(VOCABULARY, grammar)
        for _ in range(60):
            assert allowed(followed)[token]
            followed.accept(token)
    except GgrunError as error:
        line = str(error)
    else:
        line = ""
    assert re.fullmatch("|the grammar: too complex .*", line)


def test_a_grammar_and_a_schema() -> None:
    with pytest.raises(UsageError, match="both"):
        SamplingOptions(grammar="root ::= .", json_schema="{}")
    with pytest.raises(UsageError, match="both"):
        Grammar(VOCABULARY, "root ::= .", "{}")
