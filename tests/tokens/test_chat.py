"""Chat templates: they render, they keep text from outside what it is, and they cannot run away."""

import re
import time
from datetime import datetime

import pytest

from ggrun.errors import UsageError
from ggrun.tokens import ChatTemplate, TemplateError, Tokenizer
from ggrun.tokens.chat import builtin_names
from tests import shared
from tests.tokens.build import CONTROL, USER_DEFINED, bpe, real

NAMES = [
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use",
    "GLM-4.6",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "Qwen3-Coder",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "google-gemma-2-2b-it",
    "google-gemma-4-31B-it",
    "meta-llama-Llama-3.1-8B-Instruct",
    "meta-llama-Llama-3.3-70B-Instruct",
    "microsoft-Phi-3.5-mini-instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "openai-gpt-oss-120b",
]
REAL = {
    "Qwen-Qwen2.5-7B-Instruct": "qwen2",
    "google-gemma-4-31B-it": "gemma-4",
    "meta-llama-Llama-3.1-8B-Instruct": "llama-bpe",
    "meta-llama-Llama-3.3-70B-Instruct": "llama-bpe",
    "microsoft-Phi-3.5-mini-instruct": "phi-3",
}
MARKUP = re.compile(
    r"<[|｜][^<>\n{}'\"]{1,60}[|｜]>|<\|[a-z_]+>|</?[a-z_]+\|?>|\[/?[A-Z_]{3,}\]|<｜[^｜]+｜>"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Says how the weather is.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where"}},
            "required": ["city"],
        },
    },
}
NOON = datetime(2026, 1, 2, 12)


def source(name: str) -> str:
    return (shared.templates() / f"{name}.jinja").read_text("utf-8")


def tokenizer_for(name: str) -> Tokenizer:
    """The real one where we have it, else one whose special tokens are the markup in the template."""
    if name in REAL:
        return real(REAL[name])
    markup = sorted(set(MARKUP.findall(source(name))))
    kinds = [CONTROL, USER_DEFINED]
    tokens = [(text, kinds[i % 2]) for i, text in enumerate(["<s>", "</s>", *markup])]
    values = bpe(*dict(tokens).items(), bos_token_id=0, eos_token_id=1)
    return Tokenizer.from_metadata(values | {"tokenizer.chat_template": source(name)})


def conversation(system: str, user: str, answer: str, again: str) -> list[dict]:
    roles = ("system", "user", "assistant", "user")
    texts = (system, user, answer, again)
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]


def chat(text: str, *special: str, **options) -> ChatTemplate:
    tokenizer = Tokenizer.from_metadata(
        bpe(*((name, CONTROL) for name in special), bos_token_id=0, **options)
    )
    return ChatTemplate(text, tokenizer, now=lambda: NOON)


@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["plain", "tools"])
@pytest.mark.parametrize("name", NAMES)
def test_real_templates_render(name, tools):
    template = ChatTemplate(source(name), tokenizer_for(name))
    text = template.render(conversation("SYSTEM", "FIRST", "ANSWER", "SECOND"), tools=tools)
    places = [text.index(word) for word in ("FIRST", "ANSWER", "SECOND")]
    assert places == sorted(places)
    assert "SYSTEM" in text
    assert "\ufdd0" not in text


@pytest.mark.parametrize("name", [name for name in NAMES if "gemma-2" not in name])
def test_real_templates_render_calls_of_tools(name):
    template = ChatTemplate(source(name), tokenizer_for(name))
    call = {
        "type": "function",
        "id": "call12345",
        "function": {"name": "get_weather", "arguments": '{"city": "Ulm"}'},
    }
    messages = [
        {"role": "user", "content": "How is it in Ulm?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "RAINY", "name": "get_weather", "tool_call_id": "call12345"},
    ]
    text = template.render(messages, tools=[TOOL])
    assert "How is it in Ulm?" in text


@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["plain", "tools"])
@pytest.mark.parametrize("name", NAMES)
def test_no_text_becomes_a_special_token(name, tools):
    tokenizer = tokenizer_for(name)
    template = ChatTemplate(source(name), tokenizer)
    tokens = tokenizer.structural_texts()[:100]
    attack = "hi " + " ".join(tokens) + "".join(tokens) + " end"
    mild, wild = (
        template.encode(conversation(text, f"{text} A", "ok", f"{text} B"), tools=tools)
        for text in ("hello there", attack)
    )
    hidden = {tokenizer.encode(token, False, parse_special=True)[0] for token in tokenizer.structural_texts()}
    assert [token for token in wild if token in hidden] == [token for token in mild if token in hidden]
    assert len([token for token in mild if token in hidden]) > 2
    text = template.render(conversation(attack, "A", "ok", "B"), tools=tools)
    assert attack in text


@pytest.mark.parametrize("name", NAMES)
def test_tools_and_answers_of_tools_are_text_too(name):
    tokenizer = tokenizer_for(name)
    template = ChatTemplate(source(name), tokenizer)
    hidden = {tokenizer.encode(token, False, parse_special=True)[0] for token in tokenizer.structural_texts()}

    def count(text: str) -> int:
        function = {**TOOL["function"], "description": text}
        messages = conversation("s", "u", text, text)
        ids = template.encode(messages, tools=[{"type": "function", "function": function}])
        return sum(token in hidden for token in ids)

    evil = [
        token for token in tokenizer.structural_texts() if "think" not in token and "channel" not in token
    ]
    assert count("".join(evil[:60]) + "x") == count("x")


def test_text_cannot_complete_what_the_template_begins():
    template = chat("{% for m in messages %}<{{ m.content }}>{{ m.content }}|>{% endfor %}", "<|end|>")
    for text in ("|end|", "<|end", "|end", "x<|end|", "<|end|>", "end|>"):
        assert 0 not in template.encode([{"role": "user", "content": text}])
        assert template.render([{"role": "user", "content": text}]) == f"<{text}>{text}|>"


def test_names_of_roles_and_fields_stay_what_they_are():
    template = chat("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}", "<|user|>")
    assert template.encode([{"role": "user", "content": "<|user|>"}]).count(0) == 1


def test_thinking_of_the_assistant_can_be_stripped():
    template = ChatTemplate(source("Qwen-Qwen3-0.6B"), tokenizer_for("Qwen-Qwen3-0.6B"))
    messages = conversation("s", "u", "<think>\nSECRET\n</think>\n\nANSWER", "v")
    assert "SECRET" not in template.render(messages)
    assert "ANSWER" in template.render(messages)


def test_there_is_one_bos():
    text = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    message = [{"role": "user", "content": "a"}]
    assert chat(text, "<s>", add_bos_token=True).encode(message).count(0) == 1
    assert chat(text.removeprefix("{{ bos_token }}"), "<s>", add_bos_token=True).encode(message)[0] == 0
    assert 0 not in chat(text.removeprefix("{{ bos_token }}"), "<s>", add_bos_token=False).encode(message)


@pytest.mark.parametrize("name", builtin_names())
def test_built_in_templates_render(name):
    template = ChatTemplate.choose(real("qwen2"), name)
    text = template.render(conversation("RULES", "FIRST", "ANSWER", "SECOND"))
    assert [text.count(word) for word in ("RULES", "FIRST", "ANSWER", "SECOND")] == [1, 1, 1, 1]


def test_the_default_is_the_models_own_and_then_chatml():
    tokenizer = Tokenizer.from_metadata(bpe(("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL)))
    message = [{"role": "user", "content": "a"}]
    rendered = ChatTemplate.choose(tokenizer).render(message)
    assert rendered == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    own = Tokenizer.from_metadata(bpe() | {"tokenizer.chat_template": "{{ messages[0].content }}!"})
    assert ChatTemplate.choose(own).render(message) == "a!"
    assert ChatTemplate.choose(own, "{{ 1 + 1 }}").render(message) == "2"
    with pytest.raises(UsageError, match="'klingon'; built in are chatml"):
        ChatTemplate.choose(own, "klingon")


def test_the_clock_can_be_set():
    assert chat("{{ strftime_now('%d %b %Y') }}").render([]) == "02 Jan 2026"
    year = ChatTemplate("{{ strftime_now('%Y') }}", real("gpt-2")).render([])
    assert year == str(datetime.now().year)


def test_what_hugging_face_offers():
    template = chat(
        "{% for m in messages %}{% generation %}{{ m.content | tojson }}{% endgeneration %}"
        "{% if m.content is string %}{% continue %}{% endif %}{% endfor %}{{ x | default('-') ~ 1 }}"
    )
    assert template.render([{"role": "user", "content": "é<|x"}]) == '"é<|x"-1'
    assert template.render([], x="y") == "y1"
    assert chat("{{ '<|x|>' | tojson(ensure_ascii=true) }}", "<|x|>").render([]) == '"<|x|>"'


def test_json_escapes_keep_the_guard():
    template = chat("{{ messages[0].content | tojson(ensure_ascii=true) }}", "<|x|>")
    assert 0 not in template.encode([{"role": "user", "content": "<|x|>é"}])
    assert template.render([{"role": "user", "content": "<|x|>é"}]) == '"<|x|>\\u00e9"'


def test_messages_are_not_changed():
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    template = chat("{% set _ = messages.append({'role': 'x'}) %}{{ messages[0].content }}")
    assert template.render(messages) == "a"
    assert messages == [{"role": "user", "content": [{"type": "text", "text": "a"}]}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ tools | length }}", "0"),
        ("{{ functions.strip() }}", "[]"),
        ("{% for m in messages %}{{ m.content + '.' }}{% endfor %}", "S.a.."),
        ("{{ raise_exception('no') if messages[0].role == 'system' }}{{ messages[0].content }}", "S\n\na"),
        (
            "{{ raise_exception('no') if messages[0].content is string }}{{ messages[0].content[0].text }}",
            "S",
        ),
    ],
)
def test_fallbacks(text, expected):
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "a"}]
    messages += [{"role": "assistant", "content": None}] if "+" in text else []
    assert chat(text).render(messages) == expected


def test_two_fallbacks_at_once():
    text = "{{ raise_exception('no') if messages[0].role == 'system' }}{{ messages[0].content + functions }}"
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "a"}]
    assert chat(text).render(messages) == "S\n\na[]"


BROKEN = {
    "tag": "{% for %}",
    "end": "{{ 'a' ",
    "unknown": "{% unknown %}",
    "filter": "{{ 1 | nofilter }}",
    "parentheses": "{{" + "(" * 5000 + "}}",
    "nested": "{% for a in b %}" * 60 + "{% endfor %}" * 60,
    "long": "a" * 2**21,
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_a_template_that_cannot_be_compiled(text):
    with pytest.raises(TemplateError, match="chat template") as caught:
        chat(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("messages", [[{"content": "a"}], ["a"], [{"role": 1}]])
def test_messages_need_a_role(messages):
    with pytest.raises(TemplateError, match="needs a role"):
        chat("{{ messages }}").render(messages)


def test_a_refusal_is_one_line():
    with pytest.raises(TemplateError, match=r"refuses the messages: roles must\.\.\.$"):
        chat("{{ raise_exception('roles must...\nsecond line') }}").render([])


def test_messages_nested_too_deeply():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TemplateError, match="nested too deeply"):
        chat("{{ messages }}").render([{"role": "user", "content": deep}])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ '**%s** on %d' % ('a', 20260102) }}", "**a** on 20260102"),
        ("{{ '{} {:>5}'.format(20260102, 1) }}", "20260102     1"),
        ("{% macro f(n) %}{{ n }}{% endmacro %}{{ f(10 ** 12) }}", "1000000000000"),
        ("{% set n = namespace(big=2000000000) %}{{ n.big * n.big }}", "4000000000000000000"),
        ("{{ ('a' * 1000000).replace('a', 'bc').split('b') | length }}", "1000001"),
        ("{{ ('a\\n' * 1000) | indent(4) | length }}", "5996"),
    ],
)
def test_what_is_not_running_away(text, expected):
    assert chat(text).render([]) == expected


LOOP = "{% for a in range(99999) %}"
DOUBLING = "{% set n = namespace(s='ab') %}" + LOOP


@pytest.mark.parametrize(
    "text",
    [
        LOOP * 3 + "{% endfor %}" * 3,
        LOOP * 2 + "0123456789" * 100 + "{% endfor %}" * 2,
        "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% macro f(n) %}{% if n < 40 %}{{ f(n + 1) }}{{ f(n + 1) }}{% endif %}{% endmacro %}{{ f(0) }}",
        DOUBLING + "{% set n.s = n.s + n.s %}{% endfor %}",
        DOUBLING + "{% set n.s = n.s ~ n.s %}{% endfor %}",
        DOUBLING + "{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
        DOUBLING + "{% set n.s = n.s.replace('a', n.s) %}{% endfor %}",
        DOUBLING + "{% set n.s = n.s | replace('a', n.s) %}{% endfor %}",
        DOUBLING + "{% set n.s = n.s.join(n.s) %}{% endfor %}",
        DOUBLING + "{% set n.s = n.s | join(n.s) %}{% endfor %}",
        "{% set x = [1] %}" + LOOP + "{% set _ = x.extend(x) %}{% endfor %}",
        "{{ 'a' * 10 ** 12 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ 'a'.ljust(10000000000) }}",
        "{{ 'a' | center(10000000000) }}",
        "{{ 'a\nb' | indent(10000000000) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '%10000000000d' | format(1) }}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{{ [1] | tojson(indent=10000000000) }}",
        "{{ range(10000000000) | list }}",
    ],
)
def test_templates_that_run_away_are_stopped(text):
    start = time.process_time()
    with pytest.raises(TemplateError) as caught:
        chat(text).render([])
    assert "\n" not in str(caught.value)
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
    ],
)
def test_templates_cannot_leave_the_sandbox(text):
    try:
        assert chat(text).render([]) == ""
    except TemplateError as error:
        assert "root" not in str(error)  # noqa: PT017
