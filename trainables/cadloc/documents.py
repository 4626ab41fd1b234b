"""YAML 1.2 files whose every value knows its file and line, and the faults of values that a model refuses.

Scalars follow the core schema of YAML 1.2.2 (section 10.3), not 1.1: `1e-3` is a number, `no` and `on` are words,
`010` is ten. A key that appears twice is a fault.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import yaml

from cadloc.contract import Fault, InputError, Json

KeyPath: TypeAlias = tuple[str | int, ...]
"""Where a value stands in a document: keys of mappings and indices of lists."""

_MOST_VALUES = 20_000  # a few nested anchors can stand for billions of values
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TAG = "tag:yaml.org,2002:"
_DECIMAL = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", rf"{_DECIMAL}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.0123456789")),
)


@dataclass(frozen=True)
class Place:
    """A line of a file, counted from 1; None: the file as a whole, or the command line."""

    file: str
    line: int | None = None


@dataclass(frozen=True)
class Document:
    """A file's data, and the place of every value in it; `comment` is the text of its first comment."""

    file: str
    data: Json
    places: Mapping[KeyPath, Place] = field(default_factory=dict)
    comment: str = ""

    def place(self, path: KeyPath) -> Place:
        """Place of a value, or of the nearest one around it."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return Place(self.file)

    def line_of(self, path: KeyPath) -> int | None:
        """Line of a value, or of the nearest one around it."""
        return self.place(path).line

    def fault(self, path: KeyPath, found: str, allowed: str, action: str = "") -> Fault:
        """A fault at a value of this document."""
        place = self.place(path)
        return Fault(place.file, dotted(path) or "the whole file", found, allowed, action, place.line)

    def get(self, path: KeyPath) -> Json:
        """The value at a path. Raises KeyError when there is none."""
        value = self.data
        for part in path:
            try:
                value = value[part]
            except (TypeError, IndexError) as error:
                raise KeyError(path) from error
        return value

    def with_value(self, path: KeyPath, value: Json, place: Place) -> Document:
        """The document with one value put in (mappings on the way are made), which then stands at `place`.

        Raises KeyError when the path leads through something that is not a mapping.
        """
        places = {known: where for known, where in self.places.items() if known[: len(path)] != path}
        return replace(self, data=_with_value(self.data, path, value), places={**places, path: place})


def dotted(path: KeyPath) -> str:
    """A path as people write it: `factors.loss[2].name`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def shown(value: Json) -> str:
    """A value as a fault shows it, at most 80 characters."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            clean = _CONTROL.sub("?", value)
            return f"'{clean[:77]}…'" if len(clean) > 78 else f"'{clean}'"
        case Mapping():
            return f"a mapping of {', '.join(map(str, value)) or 'nothing'}"[:80]
        case list() | tuple():
            return f"a list of {len(value)}"
        case _:
            return str(value)[:80]


def load_document(path: Path) -> Document:
    """The YAML file at `path`. Raises InputError: unreadable, not YAML 1.2, empty, or with repeated keys."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        found = f"bytes that are not UTF-8 ({error.reason})"
        raise InputError(Fault(str(path), "the whole file", found, "YAML text")) from error
    except OSError as error:
        raise InputError(Fault(str(path), "the whole file", str(error.strerror), "a readable YAML file")) from error
    document = parse_document(text, str(path))
    if document.data is None:
        raise InputError(Fault(str(path), "the whole file", "an empty file", "a mapping of settings"))
    return document


def parse_document(text: str, file: str) -> Document:
    """The document in a text, said to be in `file`. Raises InputError like `load_document`."""
    reader = _Reader(file)
    try:
        node = yaml.compose(text, Loader=_Yaml12)
        data = None if node is None else reader.read(node, ())
    except RecursionError as error:
        raise InputError(Fault(file, "the whole file", "values nested too deeply", "a few levels")) from error
    except yaml.YAMLError as error:
        raise InputError(_syntax_fault(error, file)) from error
    if reader.faults:
        raise InputError(reader.faults)
    return Document(file, data, reader.places, _first_comment(text))


def parse_value(text: str, file: str) -> Json:
    """One value, typed by the rules of a document: `1e-3` a number, `[a, b]` a list. Raises InputError."""
    return parse_document(text, file).data


def dump_document(data: Json, comment: str = "") -> str:
    """The data as YAML, below a comment; `parse_document` reads the same data, and YAML 1.1 readers do too."""
    header = f"# {comment}\n" if comment else ""
    return header + str(yaml.dump(data, Dumper=_CarefulDumper, sort_keys=False, allow_unicode=False))


class _CarefulDumper(yaml.SafeDumper):
    """Puts words in quotes that either version of YAML would read as something else."""


class _Yaml12(yaml.SafeLoader):
    """Resolves scalars by YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 -- PyYAML's own


for _name, _pattern, _first in _SCALARS:
    _CarefulDumper.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)
    _Yaml12.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)


class _Reader:
    """Turns a tree of nodes into values, keeping places and collecting faults."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.places: dict[KeyPath, Place] = {}
        self.faults: list[Fault] = []
        self._open: set[int] = set()
        self._count = 0

    def read(self, node: yaml.Node, path: KeyPath) -> Json:
        """The node's value; places of what is inside are recorded."""
        self._count += 1
        self.places.setdefault(path, Place(self.file, node.start_mark.line + 1))
        if self._count > _MOST_VALUES or id(node) in self._open:
            if not self.faults:
                self._fault(node, path, "anchors that repeat without end", f"at most {_MOST_VALUES} values")
            return None
        self._open.add(id(node))
        try:
            return self._value(node, path)
        finally:
            self._open.discard(id(node))

    def _value(self, node: yaml.Node, path: KeyPath) -> Json:
        kind = node.tag.removeprefix(_TAG)
        match node:
            case yaml.MappingNode() if kind == "map":
                return self._mapping(node, path)
            case yaml.SequenceNode() if kind == "seq":
                return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
            case yaml.ScalarNode() if kind in ("null", "bool", "int", "float", "str"):
                return self._scalar(node, kind, path)
        self._fault(node, path, f"the tag {node.tag}", "plain values, lists and mappings", "leave the tag out")
        return None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Json]:
        result: dict[str, Json] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != f"{_TAG}str":
                found = f"the key {shown(key)}, which is not a word"
                self._fault(key_node, path, found, "words as keys", "put it in quotes")
                continue
            here = (*path, key)
            if key in result:
                self._fault(key_node, here, "a second time", f"each key once (first in line {self.places[here].line})")
                continue
            self.places[here] = Place(self.file, key_node.start_mark.line + 1)
            result[key] = self.read(value_node, here)
        return result

    def _scalar(self, node: yaml.ScalarNode, kind: str, path: KeyPath) -> Json:
        try:
            return _scalar_value(node.value, kind)
        except ValueError:
            self._fault(node, path, shown(node.value), f"a value of the type {kind}")
            return None

    def _fault(self, node: yaml.Node, path: KeyPath, found: str, allowed: str, action: str = "") -> None:
        key = dotted(path) or "the whole file"
        self.faults.append(Fault(self.file, key, found, allowed, action, node.start_mark.line + 1))


def _scalar_value(text: str, kind: str) -> Json:
    """Raises ValueError where an explicit tag promises what the text is not, or for thousands of digits."""
    match kind:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _syntax_fault(error: yaml.YAMLError, file: str) -> Fault:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    line = None if mark is None else mark.line + 1
    found = _CONTROL.sub(" ", str(problem))[:200]
    return Fault(file, "the whole file", found, "YAML 1.2", "check indentation, colons and quotes", line)


def _first_comment(text: str) -> str:
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("#"):
            lines.append(line.lstrip("#").strip())
        elif lines or line.strip():
            break
    return " ".join(lines).strip()


def _with_value(data: Json, path: Sequence[str | int], value: Json) -> Json:
    if not path:
        return value
    head, *rest = path
    if isinstance(data, list) and isinstance(head, int) and head < len(data):
        return [_with_value(item, rest, value) if index == head else item for index, item in enumerate(data)]
    if not (isinstance(data, Mapping) or data is None) or isinstance(head, int):
        raise KeyError(head)
    known = dict(data or {})
    known[head] = _with_value(known.get(head), rest, value)
    return known
