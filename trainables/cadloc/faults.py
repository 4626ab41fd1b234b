"""What a pydantic model refuses, told as faults: one per typo, with the key's place, what is allowed and a guess."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import NoneType
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from cadloc.contract import Fault, InputError, Json
from cadloc.documents import Document, KeyPath, shown

Model = TypeVar("Model", bound=BaseModel)
Report: TypeAlias = Callable[[KeyPath, str, str, str], Fault]
"""Makes a fault of a key's path in the data, what was found there, what is allowed, and what to do."""

UNKNOWN_KEY = "an unknown key"
_PLAINER = {"a valid boolean": "true or false", "a valid integer": "a whole number", "a valid number": "a number"}


def validate(model: type[Model], document: Document) -> Model:
    """The document as a model. Raises InputError with one fault per wrong key."""
    value, faults = check(model, document.data, document.fault)
    if value is None:
        raise InputError(faults)
    return value


def check(model: type[Model], data: Json, report: Report) -> tuple[Model | None, list[Fault]]:
    """The data as a model and no faults, or None and one fault per wrong key.

    Strict: words are not read as numbers or booleans. A whole number may be spelled as a float (`1e6`).
    """
    plain = _whole_numbers(data)
    try:
        return model.model_validate_json(json.dumps(plain), strict=True), []
    except ValidationError as error:
        return None, list(_faults(model, plain, error, report))


def did_you_mean(word: str, allowed: Sequence[str]) -> str:
    """`did you mean '…'?` for the closest allowed word; empty when none is close."""
    close = get_close_matches(word, allowed, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else ""


def _faults(model: type[BaseModel], data: Json, error: ValidationError, report: Report) -> Iterator[Fault]:
    """One fault per key: the branches of a plain union each have their say, joined with `or`."""
    told: dict[KeyPath, tuple[str, list[str], str]] = {}
    for details in error.errors(include_url=False):
        path, rest = _path_in(data, details["loc"], details["type"])
        for where, found, allowed, action in _sayings(model, data, path, rest, details):
            told.setdefault(where, (found, [], action))[1].append(allowed)
    misspelt = {(*where[:-1], guess) for where, (found, _, action) in told.items() if (guess := _guess(found, action))}
    for where, (found, ways, action) in told.items():
        if where not in misspelt:  # the required key is there, under a wrong name: one typo, one fault
            yield report(where, found, " or ".join(dict.fromkeys(ways)), action)


def _guess(found: str, action: str) -> str:
    return action.split("'")[1] if found == UNKNOWN_KEY and "'" in action else ""


def _sayings(
    model: type[BaseModel], data: Json, path: KeyPath, rest: str, details: Any
) -> Iterator[tuple[KeyPath, str, str, str]]:
    """(path, found, allowed, action) for one error of pydantic."""
    value = _value_at(data, path)
    match details["type"]:
        case "extra_forbidden":
            keys = _keys_at(model, data, path[:-1])
            yield path, UNKNOWN_KEY, ", ".join(keys), did_you_mean(str(path[-1]), keys)
        case "missing":
            yield (*path, *_missing(details["loc"])), "nothing", "a value; this key must be given", ""
        case "union_tag_not_found":
            yield from _no_tag(model, data, path, details["ctx"]["discriminator"].strip("'"))
        case "union_tag_invalid":
            tags = [tag.strip(" '") for tag in details["ctx"]["expected_tags"].split(",")]
            tag, where = details["ctx"]["tag"], (*path, details["ctx"]["discriminator"].strip("'"))
            yield where, shown(tag), ", ".join(tags), did_you_mean(tag, tags)
        case "literal_error":
            words = [word.strip("'") for word in details["ctx"]["expected"].replace(" or ", ", ").split(", ")]
            yield path, shown(value), ", ".join(words), did_you_mean(str(value), words)
        case "model_type" | "dict_type" | "model_attributes_type":
            names = _names_at(model, data, path)
            action = f"write {{name: {value}}}" if isinstance(value, str) and value in names else ""
            yield path, shown(value), "a mapping" + (f" with name {', '.join(names)}" if names else ""), action
        case _:
            found = shown(path[-1]) if rest else shown(value)
            yield path, found, _requirement(details["msg"]) + rest, ""


def _requirement(message: str) -> str:
    message = re.sub(r"^(Input should be |Value error, |String should |Value should |\w+ should have )", "", message)
    message = re.sub(r" after validation, not \d+$", "", message)
    return _PLAINER.get(message, message)


def _missing(loc: Sequence[str | int]) -> KeyPath:
    return (loc[-1],) if loc else ()


def _no_tag(
    model: type[BaseModel], data: Json, path: KeyPath, discriminator: str
) -> Iterator[tuple[KeyPath, str, str, str]]:
    """A choice without its `name`: often the word `name` itself is misspelt, and then that is the fault."""
    value, names = _value_at(data, path), _names_at(model, data, path)
    for key in value if isinstance(value, Mapping) else ():
        if get_close_matches(key, [discriminator], cutoff=0.7):
            yield (*path, key), UNKNOWN_KEY, discriminator, f"did you mean '{discriminator}'?"
            return
    yield (*path, discriminator), "nothing", ", ".join(names), ""


def _path_in(data: Json, loc: Sequence[str | int], kind: str) -> tuple[KeyPath, str]:
    """The error's path in the data, without the union branches that pydantic puts between; and a remark on keys."""
    path: list[str | int] = []
    last = len(loc) - 1
    for position, part in enumerate(loc):
        inside = isinstance(data, Mapping) and part in data
        if inside or (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            data = data[part]
            path.append(part)
        elif position == last and part == "[key]":
            return tuple(path), " (the key itself)"
    return tuple(path), ""


def _value_at(data: Json, path: KeyPath) -> Json:
    for part in path:
        data = data[part]
    return data


def _keys_at(model: type[BaseModel], data: Json, path: KeyPath) -> list[str]:
    """Keys that the mapping at a path may have."""
    keys = [key for candidate in _models_at(model, data, path) for key in candidate.model_fields]
    return list(dict.fromkeys(keys))


def _names_at(model: type[BaseModel], data: Json, path: KeyPath) -> list[str]:
    """Names among which the choice at a path chooses; empty where there is no choice."""
    names: list[str] = []
    for candidate in _models_at(model, data, path, chosen=False):
        for tag in ("name", "scheduler"):
            field = candidate.model_fields.get(tag)
            names += [str(word) for word in _literals(field.annotation)] if field else []
    return names


def _models_at(model: type[BaseModel], data: Json, path: KeyPath, chosen: bool = True) -> list[type[BaseModel]]:
    """Models that the value at a path may be; of a choice only the named one, if `chosen`."""
    annotations: list[Any] = [model]
    for index, part in enumerate(path):
        inner: list[Any] = []
        for annotation in _chosen(_models(annotations), _value_at(data, path[:index])):
            field = annotation.model_fields.get(str(part))
            inner += [field.annotation] if field else []
        annotations = inner or [argument for annotation in annotations for argument in get_args(annotation)]
    models = _models(annotations)
    return _chosen(models, _value_at(data, path)) if chosen else models


def _models(annotations: Sequence[Any]) -> list[type[BaseModel]]:
    """The models within annotations, however wrapped (optional, union, annotated, tuple, mapping)."""
    found: list[type[BaseModel]] = []
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        elif annotation is not NoneType:
            found += _models(get_args(annotation))
    return found


def _chosen(models: Sequence[type[BaseModel]], value: Json) -> list[type[BaseModel]]:
    if len(models) < 2 or not isinstance(value, Mapping):
        return list(models)
    named = [
        model
        for model in models
        for tag in ("name", "scheduler")
        if tag in model.model_fields and value.get(tag) in _literals(model.model_fields[tag].annotation)
    ]
    return named or list(models)


def _literals(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if getattr(annotation, "__origin__", None) is Literal else ()


def _whole_numbers(value: Json) -> Json:
    """Floats that are whole become integers, so that `1e6` may be a count."""
    match value:
        case float() if value.is_integer() and abs(value) < 2**53:
            return int(value)
        case Mapping():
            return {key: _whole_numbers(item) for key, item in value.items()}
        case list() | tuple():
            return [_whole_numbers(item) for item in value]
    return value
