"""The Jinja environment of chat templates: what Hugging Face's offers, in a sandbox, and metered.

A template comes with a model file from anywhere. Jinja's sandbox keeps it away from Python's internals. The
meter keeps it from running forever or filling the memory: steps and characters are counted, and what makes
long strings or numbers of short ones is checked first. That stops accidents and plain malice, not everything.
"""

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Undefined, nodes
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import SandboxedEnvironment
from jinja2.visitor import NodeTransformer

from ggrun.tokens.guard import GUARD

MAX_STEPS = 200_000  # rounds of loops and calls of macros, in one rendering
MAX_CHARS = 32_000_000  # written in one rendering, parts that are thrown away included
_MAX_STRING = 16_000_000  # characters in one value
_MAX_BITS = 4096  # of an integer
_MAX_WIDTH = 10_000  # of a field or an indentation
_PADDING = frozenset(["center", "expandtabs", "indent", "ljust", "rjust", "tojson", "zfill"])
# In a format: a width that is large or comes from the values.
_WIDE = re.compile(r"%(?:\([^)]*\))?[^a-zA-Z%]*(?:\*|\d{5})|\{[^{}]*:[^{}]*(?:\{|\d{5})")

# Filters that can make much out of little, and that no chat template needs.
_NO_FILTERS = ("batch", "center", "filesizeformat", "pprint", "slice", "urlize", "wordwrap", "xmlattr")


class RunawayError(SecurityError):
    """A template takes too long or writes too much."""


class ChatEnvironment(SandboxedEnvironment):
    """Renders the templates of one model; one rendering at a time, each after `reset`."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _Generation],
            finalize=self._written,
        )
        self._steps = self._chars = 0
        for name in _NO_FILTERS:
            del self.filters[name]
        self.filters["tojson"] = _to_json
        self.filters["from_json"] = self.filters["fromjson"] = json.loads
        for name in ("indent", "join", "replace", "format"):
            self.filters[name] = _bounded(name, self.filters[name])
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: now().strftime(form)

    def reset(self) -> None:
        """Starts the meter anew."""
        self._steps = self._chars = 0

    def step(self, chars: int) -> None:
        """Counts a round of a loop or a call of a macro, with the template text that it writes."""
        self._steps += 1
        self._count(chars)
        if self._steps > MAX_STEPS:
            raise RunawayError(f"the template takes more than {MAX_STEPS} steps")

    def concatenate(self, *parts: Any) -> str:
        """The `~` of Jinja."""
        texts = [str(part) for part in parts]
        _check_size(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operators that can make much out of little."""
        _check_operands(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Calls of functions and methods. (Jinja's own names: a template may pass `self` as a keyword.)"""
        owner = getattr(__obj, "__self__", None)
        if owner is not __self:
            _check_call(getattr(__obj, "__name__", ""), owner, *args, *kwargs.values())
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`format` of a string, which Jinja wraps when a template asks for it."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_fields(str(value.__self__))
        return wrapped

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Meter().visit(super()._parse(source, name, filename))  # type: ignore[no-any-return]

    def _written(self, value: Any) -> Any:
        if isinstance(value, str):
            self._count(len(value))
        return value

    def _count(self, chars: int) -> None:
        self._chars += chars
        if self._chars > MAX_CHARS:
            raise RunawayError(f"the template writes more than {MAX_CHARS} characters")


class _Meter(NodeTransformer):
    """Puts a call of `step` into every loop and macro, and has `~` go through `concatenate`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        return self._with_step(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._with_step(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._with_step(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _own("concatenate", node.nodes, node.lineno)

    def _with_step(self, node: Any) -> nodes.Node:
        chars = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        step = _own("step", [nodes.Const(chars, lineno=node.lineno)], node.lineno)
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        return node  # type: ignore[no-any-return]


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks what a model says, for training: here just its text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _own(method: str, args: list[nodes.Expr], line: int) -> nodes.Expr:
    return nodes.Call(nodes.EnvironmentAttribute(method), args, [], None, None, lineno=line)


def _raise_exception(message: Any) -> NoReturn:
    raise TemplateRuntimeError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    _check_call("tojson", indent)
    text = json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_json_value,
    )
    # The guard must stay one character that can be taken out again.
    return text.replace("\\ufdd0", GUARD) if ensure_ascii else text


def _json_value(value: Any) -> Any:
    if isinstance(value, Undefined):
        return None
    if hasattr(value, "__iter__"):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of Jinja's whose arguments are checked; it keeps the mark that has Jinja pass the context."""
    first = int(hasattr(function, "jinja_pass_arg"))

    def bounded(*args: Any, **kwargs: Any) -> Any:
        _check_call(name, *args[first:], *kwargs.values())
        return function(*args, **kwargs)

    bounded.__dict__.update(function.__dict__)
    return bounded


def _check_operands(operator: str, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * (max(right, 1) if operator == "**" else 1) + right.bit_length()
        if bits > _MAX_BITS:
            raise RunawayError("the template makes too large a number")
    elif operator == "*":
        for times, value in ((left, right), (right, left)):
            if isinstance(times, int):
                _check_size(times * _size(value))
    elif operator == "+":
        _check_size(_size(left) + _size(right))
    elif operator == "%" and isinstance(left, str):
        _check_fields(left)


def _check_call(name: str, *values: Any) -> None:
    """Bounds what a function (with its object as first value) or a filter can make of small arguments."""
    if name in _PADDING and any(isinstance(value, int) and value > _MAX_WIDTH for value in values):
        raise RunawayError(f"the template calls {name} with too large a width")
    sizes = [_size(value) for value in values]
    if name == "replace" and len(sizes) > 2:
        _check_size(sizes[0] + sizes[0] // max(sizes[1], 1) * sizes[2])
    elif name == "join" and len(sizes) > 1:
        _check_size(sizes[0] * sizes[1])
    elif name == "extend":
        _check_size(sum(sizes))
    elif name == "indent" and len(values) > 1 and isinstance(values[1], int):
        _check_size(sizes[0] * values[1])
    elif name == "format" and isinstance(values[0], str):
        _check_fields(values[0])


def _check_fields(form: str) -> None:
    if _WIDE.search(form):
        raise RunawayError("the template asks for too wide a field")


def _check_size(size: int) -> None:
    if size > _MAX_STRING:
        raise RunawayError(f"the template makes a value of more than {_MAX_STRING} characters")


def _size(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 1
