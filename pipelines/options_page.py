"""docs/options.md: every key of a run file, made from the schemas that check it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from schemas.cluster import KubernetesCluster, SlurmCluster
from schemas.run import RunSpec

PAGE = Path(__file__).resolve().parent.parent / "docs" / "options.md"
HEAD = """# Options of a run file

Every key, its type, its default and what it does. This page is made from the schemas (`make docs`); unknown keys are refused, and the
nearest valid one is named.
"""
CLUSTERS = """
# Options of a cluster file

For `execution.cluster: file`; `kind` says which of the two it is. [clusters.md](clusters.md) says which to use when.
"""


def options_page() -> str:
    """The page as Markdown."""
    own = "".join(_section(model) for model in _models(RunSpec))
    return HEAD + own + CLUSTERS + _section(SlurmCluster) + _section(KubernetesCluster)


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model and every model below it, each once, parents first."""
    waiting, seen = [model], {model}
    while waiting:
        current = waiting.pop(0)
        yield current
        for field in current.model_fields.values():
            for found in _inside(field.annotation):
                if found not in seen:
                    seen.add(found)
                    waiting.append(found)


def _inside(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _inside(argument)


def _section(model: type[BaseModel]) -> str:
    about = (model.__doc__ or "").strip().splitlines()[0]
    rows = "".join(_row(name, field) for name, field in model.model_fields.items())
    return f"\n## {model.__name__}\n\n{about}\n\n| key | type | default | |\n|---|---|---|---|\n{rows}"


def _row(name: str, field: FieldInfo) -> str:
    kind = _type(field.annotation).replace("|", "\\|")
    about = " ".join((field.description or "").split()).replace("|", "\\|")
    return f"| `{name}` | {kind} | {_default(field)} | {about} |\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        kind = getattr(value, "kind", None)
        return "its defaults" if kind is None else f"`{kind}`, its defaults"
    return "" if value is PydanticUndefined else f"`{value!r}`"


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(_type(a) for a in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping to {_type(arguments[1])}"
    if origin is Literal:
        return ", ".join(f"`{a}`" for a in arguments)
    if origin is not None and arguments:
        return _type(arguments[0])
    if annotation is type(None):
        return "null"
    name = getattr(annotation, "__name__", str(annotation))
    linked = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return f"[{name}](#{name.lower()})" if linked else {"JsonValue": "any"}.get(name, name)


if __name__ == "__main__":
    PAGE.write_text(options_page())
    sys.stdout.write(f"{PAGE}\n")
