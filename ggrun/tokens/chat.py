"""Chat templates: a list of messages to the text, or the token ids, that the model was trained on."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib import resources
from itertools import combinations
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

from ggrun.errors import UsageError
from ggrun.tokens.errors import TemplateError
from ggrun.tokens.guard import GUARD, Guard
from ggrun.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ggrun.tokens.sandbox import ChatEnvironment

Message = Mapping[str, Any]  # role; content: text, None or a list of parts; tool_calls, ...
_MAX_SOURCE = 1 << 20  # characters; the longest templates in use have some 20,000
# An assistant's own message may hold these, for the template to find and to strip what lies between them.
_THINKING = frozenset(
    ["<think>", "</think>", "<thinking>", "</thinking>", "[THINK]", "[/THINK]", "<|channel>", "<channel|>"]
)


class ChatTemplate:
    """A model's chat template with the tokenizer that it belongs to."""

    def __init__(self, source: str, tokenizer: Tokenizer, now: Callable[[], datetime] = datetime.now) -> None:
        """`source` is Jinja; `now` is the clock that it sees. `TemplateError` if it cannot be compiled."""
        from ggrun.tokens.sandbox import ChatEnvironment

        self.source = source
        self._tokenizer = tokenizer
        self._now = now
        self._guard = Guard(tokenizer.structural_texts())
        self._environment = ChatEnvironment(now)
        self._template = _compiled(self._environment, source.replace(GUARD, ""))
        self._lock = Lock()

    @classmethod
    def choose(cls, tokenizer: Tokenizer, wanted: str | None = None) -> Self:
        """The model's own template (chatml if it has none), or the `wanted` one: a built-in name or Jinja."""
        if wanted is None:
            return cls(tokenizer.chat_template or builtin("chatml"), tokenizer)
        return cls(wanted if "{" in wanted else builtin(wanted), tokenizer)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The conversation as one text.

        `tools` are JSON schemas of functions; `add_generation_prompt` adds the start of the model's answer;
        `variables` are passed on to the template. `TemplateError` if the template refuses the messages.
        """
        return self._guarded(messages, tools, add_generation_prompt, variables).replace(GUARD, "")

    def encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]:
        """The conversation as token ids, with BOS where the model wants it; otherwise as `render`.

        Only the template's own text becomes special tokens, not that of messages, tools and variables,
        whatever is in them; but an assistant's message may hold the tokens around its thinking.
        """
        tokenizer = self._tokenizer
        ids = tokenizer.encode_guarded(self._guarded(messages, tools, add_generation_prompt, variables))
        if tokenizer.add_bos and tokenizer.bos is not None and ids[:1] != [tokenizer.bos]:
            ids.insert(0, tokenizer.bos)
        return ids

    def _guarded(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        try:
            return self._first_success(self._variables(messages, tools, add_generation_prompt, variables))
        except RecursionError as error:
            raise TemplateError("the messages are nested too deeply") from error

    def _variables(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> dict[str, Any]:
        tokens = self._tokenizer
        return {
            "bos_token": tokens.token_text(tokens.bos),
            "eos_token": tokens.token_text(tokens.eos),
            "unk_token": tokens.token_text(tokens.unk),
            "pad_token": tokens.token_text(tokens.pad),
            "documents": None,
            **{key: self._guard.tree(value) for key, value in variables.items()},
            "add_generation_prompt": add_generation_prompt,
            "tools": self._guard.tree(tools) if tools else None,
            "messages": [self._message(message) for message in messages],
        }

    def _message(self, message: Message) -> dict[str, Any]:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise TemplateError("a chat message needs a role")
        allowed = _THINKING if message["role"] == "assistant" else frozenset()
        usual = _usual({"content": None, **copy.deepcopy(dict(message))})
        return {self._guard.text(key): self._guard.tree(value, allowed) for key, value in usual.items()}

    def _first_success(self, given: dict[str, Any]) -> str:
        """Renders with the fewest fallbacks that make the template accept the messages."""
        from ggrun.tokens.sandbox import RunawayError

        refusal: Exception | None = None
        for fallbacks in _attempts():
            variables = copy.deepcopy(given)
            for fallback in fallbacks:
                fallback(variables, self._now)
            try:
                return self._render(variables)
            except RunawayError as error:
                raise TemplateError(str(error)) from error
            except Exception as error:  # whatever the template does to what it does not expect
                refusal = refusal or error
        raise TemplateError(f"the chat template refuses the messages: {_line(refusal)}") from refusal

    def _render(self, variables: dict[str, Any]) -> str:
        with self._lock:
            self._environment.reset()
            return str(self._template.render(variables))


@cache
def builtin_names() -> tuple[str, ...]:
    """The names of the built-in templates."""
    folder = resources.files(__package__) / "templates"
    files = (file.name for file in folder.iterdir())
    return tuple(sorted(name.removesuffix(".jinja") for name in files if name.endswith(".jinja")))


def builtin(name: str) -> str:
    """The source of a built-in template; `UsageError` for a name that is none."""
    if name not in builtin_names():
        raise UsageError(f"unknown chat template {name!r}; built in are {', '.join(builtin_names())}")
    return (resources.files(__package__) / "templates" / f"{name}.jinja").read_text("utf-8")


def _compiled(environment: "ChatEnvironment", source: str) -> Any:
    if len(source) > _MAX_SOURCE:
        raise TemplateError(f"the chat template is longer than {_MAX_SOURCE} characters")
    try:
        return environment.from_string(source)
    except Exception as error:  # also of Python's own compiler: nested too deeply
        raise TemplateError(f"the chat template cannot be compiled: {_line(error)}") from error


def _line(error: Exception | None) -> str:
    """The first line of an error's message: a single line on the terminal, whatever the template says."""
    first = str(error).strip().partition("\n")[0].replace(GUARD, "")[:300]
    return "".join(c for c in first if c.isprintable()) or type(error).__name__


def _usual(message: dict[str, Any]) -> dict[str, Any]:
    """The form that most templates expect: text as one string, a tool's arguments as a dict."""
    content = message["content"]
    if isinstance(content, list) and content and all(_is_text(part) for part in content):
        message["content"] = "\n".join(part["text"] for part in content)
    for function in _functions(message):
        if isinstance(function.get("arguments"), str):
            try:
                function["arguments"] = json.loads(function["arguments"])
            except ValueError:
                continue  # the model wrote no JSON: the template gets what it wrote
    return message


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _functions(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, dict) and isinstance(call.get("function"), dict):
            yield call["function"]


# What is tried, one by one and then two at a time, when a template refuses the messages as they are.


def _empty_tools(variables: dict[str, Any], now: Callable[[], datetime]) -> None:
    """An empty list of tools instead of none."""
    variables["tools"] = variables["tools"] or []


def _more_variables(variables: dict[str, Any], now: Callable[[], datetime]) -> None:
    """The variables of a few old templates: the tools as JSON text, the date."""
    variables["functions"] = json.dumps(variables["tools"] or [], indent=4, ensure_ascii=False)
    variables["datetime"] = now().strftime("%b %d %Y %H:%M")


def _system_in_first_turn(variables: dict[str, Any], now: Callable[[], datetime]) -> None:
    """The system's text before that of the first user turn, for models that know no system role."""
    messages = variables["messages"]
    texts = [message["content"] for message in messages if message["role"] == "system"]
    variables["messages"] = rest = [message for message in messages if message["role"] != "system"]
    user = next((message for message in rest if message["role"] == "user"), None)
    if user and texts:
        user["content"] = "\n\n".join([*map(str, texts), str(user["content"])])


def _text_content(variables: dict[str, Any], now: Callable[[], datetime]) -> None:
    """An empty text where a message has no content."""
    for message in variables["messages"]:
        message["content"] = "" if message["content"] is None else message["content"]


def _json_arguments(variables: dict[str, Any], now: Callable[[], datetime]) -> None:
    """The arguments of tool calls as JSON text."""
    for message in variables["messages"]:
        for function in _functions(message):
            if not isinstance(function.get("arguments"), str):
                function["arguments"] = json.dumps(function.get("arguments"), ensure_ascii=False)


def _content_in_parts(variables: dict[str, Any], now: Callable[[], datetime]) -> None:
    """Texts as lists of parts, for templates that know nothing else."""
    for message in variables["messages"]:
        if isinstance(message["content"], str):
            message["content"] = [{"type": "text", "text": message["content"]}]


_FALLBACKS = (
    _empty_tools,
    _more_variables,
    _system_in_first_turn,
    _text_content,
    _json_arguments,
    _content_in_parts,
)


def _attempts() -> Iterator[tuple[Callable[[dict[str, Any], Callable[[], datetime]], None], ...]]:
    for count in range(3):
        yield from combinations(_FALLBACKS, count)
