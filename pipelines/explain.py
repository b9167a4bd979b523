"""pydantic's errors in words: which key is wrong, what was found and expected, and what to write instead.

In a union of models the branch is picked by `kind`: only mistakes of the branch that was meant are told.
"""

import difflib
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from schemas.data import Source
from schemas.errors import nearest
from schemas.gradients import Keep
from schemas.loss import Loss
from schemas.model import Model

KeyPath = tuple[str | int, ...]
EXPECTED = {
    "tuple_type": "a list, in [square brackets] or one `- item` per line",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
}
"""pydantic's names of types in the words of YAML."""
MOST = 8
"""Mistakes told at once."""


class Mistake(NamedTuple):
    """One error, at the branch that was meant."""

    path: KeyPath
    """Key path in the user's file."""
    detail: ErrorDetails
    owner: type[BaseModel] | None
    """The model that the last key belongs to."""


def explain(
    error: ValidationError, model: type[BaseModel], data: object, where: Callable[[KeyPath], str]
) -> str:
    """One line per mistake: place, key path, what was found, what was expected, cure."""
    mistakes = [m for detail in error.errors() if (m := locate(detail, model, data)) is not None]
    mistakes = without_consequences(mistakes)
    lines = [f"{where(m.path)}: {dotted(m.path) or 'the whole file'}: {sentence(m)}" for m in mistakes]
    unique = list(dict.fromkeys(lines)) or [str(error)]
    more = [f"... and {len(unique) - MOST} more"] if len(unique) > MOST else []
    return "\n".join(unique[:MOST] + more)


def dotted(path: KeyPath) -> str:
    """A key path as `--set` takes it."""
    return ".".join(map(str, path))


def locate(detail: ErrorDetails, model: type[BaseModel], data: object) -> Mistake | None:
    """Follow an error's location through the types; None if it lies in a branch that was not meant."""
    annotation: Any = model
    path: list[str | int] = []
    owner: type[BaseModel] | None = model
    for part in detail["loc"]:
        branches = models_in(annotation)
        if len(branches) > 1:
            meant = branch_meant(branches, data)
            if str(part) != meant.__name__:
                return None
            annotation = meant
            continue
        owner = branches[0] if branches else None
        annotation = step(annotation, part)
        if isinstance(part, str) and part in MARKERS:
            continue
        path.append(part)
        data = inside(data, part)
    return Mistake(tuple(path), detail, owner)


MARKERS = frozenset({"[key]", "str", "int", "float", "bool", "none"})
"""Parts of a location that pydantic adds and no file has."""


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation allows, through Annotated and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin = get_origin(annotation)
    if origin is Annotated:
        return models_in(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [model for part in get_args(annotation) for model in models_in(part)]
    return []


def step(annotation: Any, part: str | int) -> Any:
    """The annotation of a field, value or item."""
    models = models_in(annotation)
    if models:
        field = models[0].model_fields.get(str(part))
        return field.annotation if field else None
    for container in containers_in(annotation):
        arguments = get_args(container)
        return arguments[1] if get_origin(container) is dict else arguments[0]
    return None


def containers_in(annotation: Any) -> Iterator[Any]:
    """Mappings and tuples that an annotation allows."""
    origin = get_origin(annotation)
    if origin in (dict, tuple, list):
        yield annotation
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from containers_in(part)


def inside(data: object, part: str | int) -> object:
    """One step into the user's data, None where there is nothing."""
    if isinstance(data, dict):
        return data.get(part)
    if isinstance(data, list | tuple) and isinstance(part, int) and part < len(data):
        return data[part]
    return None


def branch_meant(branches: list[type[BaseModel]], data: object) -> type[BaseModel]:
    """The branch whose `kind` is given, or misspelt, or whose keys fit best."""
    given = data if isinstance(data, dict) else {}
    by_kind = {kind_of(branch): branch for branch in branches}
    kind = given.get("kind", next((given[key] for key in given if close(str(key), ("kind",))), None))
    if isinstance(kind, str) and kind in by_kind:
        return by_kind[kind]
    near = difflib.get_close_matches(str(kind), [str(k) for k in by_kind], n=1)
    return by_kind[near[0]] if near else max(branches, key=lambda branch: fit(branch, given))


def kind_of(model: type[BaseModel]) -> object:
    """The literal of a model's `kind`."""
    field = model.model_fields.get("kind")
    return (
        get_args(field.annotation)[0] if field is not None and get_args(field.annotation) else model.__name__
    )


def fit(model: type[BaseModel], given: Mapping[Any, Any]) -> tuple[int, int]:
    """How well keys fit a model: required ones first."""
    known = [key for key in given if key in model.model_fields or close(str(key), tuple(model.model_fields))]
    missing = [
        name for name, field in model.model_fields.items() if field.is_required() and name not in given
    ]
    return len(known), -len(missing)


def close(name: str, valid: tuple[str, ...]) -> str | None:
    """The valid name that a misspelt one was meant to be."""
    return next(iter(difflib.get_close_matches(name, valid, n=1, cutoff=0.5)), None)


def without_consequences(mistakes: list[Mistake]) -> list[Mistake]:
    """Leave out `missing` errors that a misspelt key explains."""
    meant = {
        (*m.path[:-1], close(str(m.path[-1]), tuple(m.owner.model_fields)))
        for m in mistakes
        if m.detail["type"] == "extra_forbidden" and m.owner is not None
    }
    return [m for m in mistakes if m.detail["type"] != "missing" or m.path not in meant]


def sentence(mistake: Mistake) -> str:
    """Found, expected, cure."""
    detail, owner = mistake.detail, mistake.owner
    last = str(mistake.path[-1]) if mistake.path else ""
    found = f"found {shown(detail['input'])}"
    if detail["type"] == "extra_forbidden" and owner is not None:
        return f"found an unknown key {last!r}; nearest: {nearest(last, owner.model_fields)}"
    if detail["type"] == "missing":
        hint = meaning(owner, last)
        return f"found nothing, expected the required key {last!r}{hint}; add it"
    if detail["type"] == "value_error":
        return detail["msg"].removeprefix("Value error, ")
    if last == "kind":
        return f"{found}, expected one of {', '.join(kinds(owner))}; nearest: {nearest_kind(detail, owner)}"
    if detail["type"] == "literal_error":
        close_by = nearest(str(detail["input"]), map(str, literals(owner, last)))
        return f"{found}, expected {detail['ctx']['expected']}; nearest: {close_by}"
    if detail["type"] in EXPECTED:
        return f"{found}; expected {EXPECTED[detail['type']]}{meaning(owner, last)}"
    expected = detail["msg"][:1].lower() + detail["msg"][1:]
    return f"{found}; {expected}{meaning(owner, last)}"


def kinds(owner: type[BaseModel] | None) -> list[str]:
    """The kinds of all models that share a union with this one."""
    return sorted(KINDS.get(owner.__name__, {str(kind_of(owner))})) if owner is not None else []


def nearest_kind(detail: ErrorDetails, owner: type[BaseModel] | None) -> str:
    """The kinds closest to a wrong one."""
    return nearest(str(detail["input"]), kinds(owner))


def literals(owner: type[BaseModel] | None, name: str) -> tuple[object, ...]:
    """The choices of a field."""
    field = owner.model_fields.get(name) if owner is not None else None
    annotation = field.annotation if field is not None else None
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def meaning(owner: type[BaseModel] | None, name: str) -> str:
    """The docstring of a field, in brackets."""
    field = owner.model_fields.get(name) if owner is not None else None
    text = " ".join(field.description.split()).rstrip(".") if field is not None and field.description else ""
    return f" ({text})" if text else ""


def shown(value: object) -> str:
    """A value for a message, cut to one short line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def families(*unions: Any) -> dict[str, set[str]]:
    """Name of each model in some unions to the kinds of its union."""
    return {
        model.__name__: {str(kind_of(other)) for other in models_in(union)}
        for union in unions
        for model in models_in(union)
    }


KINDS = families(Model, Source, Loss, Keep)
