"""`--set`: values for the `${variables}` of space and scene files, and for the keys of a space."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cadloc.contract import Fault, InputError, Json
from cadloc.documents import Document, KeyPath, Place, parse_value
from cadloc.faults import did_you_mean

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Variables:
    """Values by name; `used` collects the names that some file asked for."""

    values: Mapping[str, str]
    used: set[str] = field(default_factory=set)

    @staticmethod
    def from_settings(settings: Sequence[str]) -> tuple[Variables, list[Fault]]:
        """Variables from `name=value` words, and the faults of words that are not of that form.

        A value that names an existing file or folder, seen from the current directory, becomes absolute.
        """
        values: dict[str, str] = {}
        faults: list[Fault] = []
        for setting in settings:
            name, sign, value = setting.partition("=")
            if not sign or not _NAME.fullmatch(name):
                faults.append(Fault("--set", setting, "no `name=value`", "--set name=value"))
            elif value and Path(value).expanduser().exists():
                values[name] = str(Path(value).expanduser().resolve())
            else:
                values[name] = value
        return Variables(values), faults

    def filled(self, document: Document) -> Document:
        """The document with every variable replaced. Raises InputError naming those without a value."""
        faults: list[Fault] = []
        data = self._filled(document.data, (), document, faults)
        if faults:
            raise InputError(faults)
        return replace(document, data=data)

    def unused(self, known: Sequence[str]) -> Iterator[Fault]:
        """Faults of values that no file asked for; `known` are the keys that could have been meant."""
        for name in self.values:
            if name not in self.used:
                keys = f"a key of the space ({', '.join(known)}) or " if known else ""
                allowed = f"{keys}a variable that a file uses"
                yield Fault(
                    "--set", name, "a name that nothing uses", allowed, did_you_mean(name, [*known, *self.used])
                )

    def _filled(self, value: Json, path: KeyPath, document: Document, faults: list[Fault]) -> Json:
        match value:
            case Mapping():
                return {key: self._filled(item, (*path, key), document, faults) for key, item in value.items()}
            case list():
                return [self._filled(item, (*path, index), document, faults) for index, item in enumerate(value)]
            case str() if "${" in value:
                return self._replaced(value, path, document, faults)
        return value

    def _replaced(self, text: str, path: KeyPath, document: Document, faults: list[Fault]) -> str:
        for name in _VARIABLE.findall(text):
            self.used.add(name)
            if name not in self.values:
                found = f"the variable ${{{name}}} without a value"
                faults.append(document.fault(path, found, "a value for it", f"pass --set {name}=VALUE"))
        return _VARIABLE.sub(lambda match: self.values.get(match[1], match[0]), text)


def split_settings(settings: Sequence[str], keys: Sequence[str]) -> tuple[list[str], list[str]]:
    """Settings of the space's own keys, and the others."""
    own = [setting for setting in settings if setting.partition("=")[0].split(".")[0] in keys and "=" in setting]
    return own, [setting for setting in settings if setting not in own]


def overridden(document: Document, settings: Sequence[str]) -> tuple[Document, list[Fault]]:
    """The document with `key=value` settings laid on top, typed like YAML, and the faults of those that do not fit."""
    faults: list[Fault] = []
    for setting in settings:
        key, _, text = setting.partition("=")
        try:
            value = parse_value(text, f"--set {key}")
            document = document.with_value(_path(key), value, Place("--set"))
        except InputError as error:
            faults += error.faults
        except KeyError:
            faults.append(Fault("--set", key, "a key below a value that holds no keys", "a key of a mapping"))
    return document, faults


def _path(key: str) -> KeyPath:
    """The path of a dotted key; names of factors keep their dots."""
    head, _, rest = key.partition(".")
    if head in ("factors", "baseline") and rest:
        return (head, rest)
    return tuple(key.split("."))
