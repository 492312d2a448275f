"""GBNF, llama.cpp's notation for grammars, rewritten in the notation of llguidance (Lark).

llguidance reads terminals greedily: in [a-z]+ "x" the first would take the x and never give it back. With
terminals of one character its parser is exact: so all else is rules. Groups become rules of their own too,
which keeps the reading here and the result flat, however deep they nest.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from ggrun.errors import UsageError

MAX_DEPTH = 1000  # llguidance follows rules by recursion: see grammar.STACK
MAX_SYMBOLS = 50_000  # it panics at 65,525
MAX_REPEAT = 1_000_000

_TOKEN = re.compile(
    r"""(?P<skip>(?:[ \t\r\n]|\#[^\r\n]*)+)
    | (?P<rule>[\w-]+)[ \t]*::=
    | (?P<name>[\w-]+)
    | "(?P<literal>(?:[^"\\]|\\.)*)"
    | \[(?P<set>(?:[^]\\]|\\.)*)]
    | (?P<any>\.)
    | (?P<repeat>[*+?]|\{\s*[0-9]+\s*(?:,\s*[0-9]*\s*)?})
    | (?P<mark>[|()])""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_ESCAPE = r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[tnr\\\"\[\]])"
_CHARACTER = re.compile(rf"{_ESCAPE}|[^\\]", re.DOTALL)
_RANGE = re.compile(rf"({_ESCAPE}|[^\\])(?:-({_ESCAPE}|[^\\]))?", re.DOTALL)
_NAMED = {"t": "\t", "n": "\n", "r": "\r"}


def to_lark(text: str) -> str:
    """The grammar in Lark; UsageError, with the line and the column, where it is none."""
    return _Reader(text).read()


@dataclass
class _Open:
    """A rule, or a group in it, that is being read: its alternatives, each a list of symbols."""

    name: str
    alternatives: list[list[str]] = field(default_factory=lambda: [[]])

    @property
    def sequence(self) -> list[str]:
        return self.alternatives[-1]


class _Reader:
    """Reads a grammar from left to right, with a stack of the groups that are open."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._stack: list[_Open] = []
        self._rules: dict[str, list[list[str]]] = {}
        self._names: dict[str, str] = {}  # as the grammar says them: as Lark does
        self._used: dict[str, int] = {}  # where a rule was first named
        self._terminals: dict[str, str] = {}  # regex: name
        self._symbols = 0

    def read(self) -> str:
        for match in self._tokens():
            kind = match.lastgroup or ""
            if kind not in ("skip", "rule") and not self._stack:
                self._fail("a rule (name ::= ...) is missing")
            getattr(self, f"_{kind}")(match[kind])
        self._at = len(self._text)
        self._end_rule()
        self._check_names()
        _check_depth(self._rules, self._names["root"])
        return "\n".join(self._lark())

    def _tokens(self) -> Iterator[re.Match[str]]:
        while self._at < len(self._text):
            if not (match := _TOKEN.match(self._text, self._at)):
                self._fail("this is no part of a grammar")
            yield match
            self._at = match.end()

    def _fail(self, why: str, at: int | None = None) -> NoReturn:
        at = self._at if at is None else at
        line, column = self._text.count("\n", 0, at) + 1, at - self._text.rfind("\n", 0, at)
        near = self._text[at : at + 20].split("\n")[0]
        where = f"line {line}, column {column}" + (f", at {near!r}" if near else ", at the end")
        raise UsageError(f"the grammar: {where}: {why}")

    # One method for each kind of token.

    def _skip(self, text: str) -> None:
        pass

    def _rule(self, name: str) -> None:
        self._end_rule()
        if (lark := self._named(name)) in self._rules:
            self._fail("this rule is there already")
        self._stack = [_Open(lark)]

    def _name(self, name: str) -> None:
        self._used.setdefault(name, self._at)
        self._add(self._named(name))

    def _literal(self, text: str) -> None:
        symbols = [self._terminal(f"[{_hex(c)}]") for c in self._characters(text)]
        self._add(symbols[0] if len(symbols) == 1 else self._define([symbols]))

    def _set(self, text: str) -> None:
        negated, text = text.startswith("^"), text.removeprefix("^")
        if not text and not negated:
            self._fail("a set of no characters")
        self._characters(text)  # refuses what is no character
        ranges = []
        for match in _RANGE.finditer(text):
            first, last = (self._characters(part)[0] for part in (match[1], match[2] or match[1]))
            if first > last:
                self._fail(f"the range {match[0]} is the wrong way round")
            ranges.append(_hex(first) if first == last else f"{_hex(first)}-{_hex(last)}")
        self._add(self._terminal(f"[{'^' * negated}{''.join(ranges)}]") if ranges else self._anything())

    def _any(self, text: str) -> None:
        self._add(self._anything())

    def _repeat(self, text: str) -> None:
        sequence = self._stack[-1].sequence
        if not sequence:
            self._fail("there is nothing to repeat")
        numbers = [int(n) for n in re.findall("[0-9]{1,9}", text)]
        if max(numbers, default=0) > MAX_REPEAT or len(text) > 40:
            self._fail(f"no more than {MAX_REPEAT} repetitions are possible")
        if len(numbers) == 2 and numbers[0] > numbers[1]:
            self._fail("the most is less than the least")
        sequence[-1] = self._define([[sequence[-1] + re.sub(r"\s", "", text)]])

    def _mark(self, mark: str) -> None:
        if mark == "(":
            self._stack.append(_Open(self._fresh()))
        elif mark == "|":
            self._stack[-1].alternatives.append([])
        elif len(self._stack) < 2:
            self._fail("nothing is open that this could close")
        else:
            group = self._stack.pop()
            self._rules[group.name] = group.alternatives
            self._add(group.name)

    # What they are made of.

    def _end_rule(self) -> None:
        if len(self._stack) > 1:
            self._fail("a ( is not closed")
        if self._stack:
            self._rules[self._stack[0].name] = self._stack[0].alternatives

    def _add(self, symbol: str) -> None:
        self._count(1)
        self._stack[-1].sequence.append(symbol)

    def _define(self, alternatives: list[list[str]]) -> str:
        self._count(sum(map(len, alternatives)))
        name = self._fresh()
        self._rules[name] = alternatives
        return name

    def _count(self, symbols: int) -> None:
        self._symbols += symbols
        if self._symbols > MAX_SYMBOLS:
            self._fail(f"too long: it has more than {MAX_SYMBOLS} symbols")

    def _fresh(self) -> str:
        return f"g{self._at}"  # no token needs more than one

    def _named(self, name: str) -> str:
        return self._names.setdefault(name, f"r{len(self._names)}")

    def _terminal(self, regex: str) -> str:
        return self._terminals.setdefault(regex, f"T{len(self._terminals)}")

    def _anything(self) -> str:
        return self._terminal(r"[\u{0}-\u{10FFFF}]")

    def _characters(self, text: str) -> list[str]:
        """What the text inside quotes or brackets means, character by character."""
        found, at = [], 0
        while at < len(text):
            if not (match := _CHARACTER.match(text, at)):
                self._fail(f"the escape {text[at : at + 2]} is unknown or unfinished")
            if (code := _code(match[0])) > 0x10FFFF or 0xD800 <= code < 0xE000:
                self._fail(f"{match[0]!r} is no character")
            found.append(chr(code))
            at = match.end()
        return found

    def _check_names(self) -> None:
        for name, at in self._used.items():
            if self._names[name] not in self._rules:
                self._fail(f"there is no rule {name}", at)
        if "root" not in self._names or self._names["root"] not in self._rules:
            self._fail("there is no rule root", 0)

    def _lark(self) -> Iterator[str]:
        # Not forced: else llguidance would allow one way only to write what is certain.
        yield '%llguidance {"no_forcing": true}'
        yield f"start: {self._names['root']}"
        for name, alternatives in self._rules.items():
            yield f"{name}: " + " | ".join(" ".join(symbols) or '""' for symbols in alternatives)
        for regex, name in self._terminals.items():
            yield f"{name}: /{regex}/"


def _code(spelled: str) -> int:
    """The number of a character, which may be spelled as an escape."""
    if len(spelled) > 2:
        return int(spelled[2:], 16)
    return ord(_NAMED.get(spelled[-1], spelled[-1]) if spelled[0] == "\\" else spelled)


def _hex(character: str) -> str:
    return f"\\u{{{ord(character):X}}}"


def _check_depth(rules: dict[str, list[list[str]]], root: str) -> None:
    """UsageError when rules name rules... too often, followed in llguidance's order."""
    uses = {
        name: [s for s in (re.split(r"[*+?{]", s)[0] for a in alternatives for s in a) if s in rules]
        for name, alternatives in rules.items()
    }
    seen, trail = {root}, [iter(uses[root])]
    while trail:
        name = next(trail[-1], None)
        if name is None:
            trail.pop()
        elif name not in seen:
            seen.add(name)
            trail.append(iter(uses[name]))
            if len(trail) > MAX_DEPTH:
                raise UsageError(f"the grammar: its rules and groups nest more than {MAX_DEPTH} deep")
