"""docs/methods.md, made from the method files: what each reads, its options, its result, its source.

`python -m pipelines.methods_page` writes the page; a test fails when it is out of date.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from schemas.base import Frozen

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
KINDS = {
    "reduce": "one number or matrix from all rows; parts are merged, memory does not grow with the rows",
    "map": "an output for every row, written shard by shard",
    "pairs": "every row against every other, block by block",
    "sequential": "a seeded pass over the rows in order",
    "whole": "all rows in memory, up to a stated number",
    "combine": "no rows: artifacts of other stages, of several sites or captures, once for all of them",
}
INTERVAL = (
    "A result of type `Interval` has `value` (of all rows), `low` and `high` (of the interval about it), and `corrected` (the value\n"
    "without the first order of its bias); None where the groups of samples do not determine it."
)


class FieldText(NamedTuple):
    """An option or a part of a result."""

    name: str
    type: str
    default: str | None
    """None where it must be given, or for results."""
    meaning: str


class MethodText(NamedTuple):
    """A method in words."""

    name: str
    family: str
    kind: str
    reads: dict[str, str]
    """Port to what it takes."""
    version: int
    seeds: tuple[int, ...]
    """Numbers of the papers that it runs, in the team's list."""
    reference: str
    summary: str
    """First line of the file."""
    description: str
    options: tuple[FieldText, ...]
    results: tuple[FieldText, ...]
    arrays: dict[str, tuple[str, ...]]


def describe_method(method: str) -> MethodText:
    """A method in words, from its module.

    Raises:
        UnknownNameError: if there is no such method.
    """
    from pipelines.stages import allowed_packages
    from tasks.methods.contract import load_method

    module = load_method(method, allowed_packages())
    summary, _, rest = inspect.cleandoc(module.__doc__ or "").partition("\n")
    return MethodText(
        name=method,
        family=method.rpartition(".")[0],
        kind=module.KIND,
        reads={name: _port(port) for name, port in module.READS.items()},
        version=module.VERSION,
        seeds=tuple(module.SEEDS),
        reference=module.REFERENCE,
        summary=summary,
        description=rest.strip(),
        options=tuple(_fields(module.Config)),
        results=tuple(_fields(module.Result)),
        arrays={name: tuple(dims) for name, dims in _arrays(module).items()},
    )


def method_record(method: MethodText) -> dict[str, Any]:
    """A method as plain JSON."""
    fields = {"options", "results"}
    return {
        name: [field._asdict() for field in value] if name in fields else value
        for name, value in method._asdict().items()
    }


def reads_text(method: MethodText) -> str:
    """What its ports take, in one line."""
    return "; ".join(f"{port}: {text}" for port, text in method.reads.items())


def seeds_text(method: MethodText) -> str:
    """The rows of the method list that it runs, `-` where there are none."""
    return ", ".join(str(seed) for seed in method.seeds) or "-"


def _arrays(module: ModuleType) -> dict[str, tuple[str, ...]]:
    return dict(getattr(module, "ARRAYS", {}))


def _port(port: Any) -> str:
    from tasks.methods.contract import ArtifactPort, BatchesPort, GraphPort

    if isinstance(port, ArtifactPort):
        made_by = "` or `".join(port.makers)
        return (
            f"artifacts of `{made_by}`, of several sites or captures"
            if port.several
            else f"the artifact of `{made_by}`"
        )
    if isinstance(port, GraphPort):
        return "a file of edges between samples, at sites of one row per sample: `{edges: path}`"
    if isinstance(port, BatchesPort):
        return "the network of a capture that has a `loss`, with its samples: `{captures: [name]}`"
    several = (
        "rows of a site, of one or several captures" if port.several else "rows of a site of one capture"
    )
    return f"{several}, with labels" if port.labels else several


def _fields(model: type[BaseModel]) -> Iterator[FieldText]:
    for name, field in model.model_fields.items():
        meaning = " ".join((field.description or "").split())
        nested = _nested(field.annotation)
        type_ = _type(field.annotation)
        default = None if field.default is PydanticUndefined else _default(field.default)
        if field.default is None and "'none'" in type_:
            default = "null"  # `none` is another of its values
        yield FieldText(name, type_, default, meaning or nested)


def _default(value: Any) -> str:
    return "none" if value is None else str(value)


def _nested(annotation: Any) -> str:
    """First line of a model's docstring, for fields that have none."""
    is_model = isinstance(annotation, type) and issubclass(annotation, Frozen)
    return inspect.cleandoc(annotation.__doc__ or "").partition("\n")[0] if is_model else ""


def _type(annotation: Any) -> str:
    """A type as a reader writes it."""
    text = (
        annotation.__name__
        if isinstance(annotation, type) and not hasattr(annotation, "__args__")
        else str(annotation)
    )
    for noise in ("typing.", "collections.abc.", "schemas.base."):
        text = text.replace(noise, "")
    text = re.sub(r"^Optional\[(.*)\]$", r"\1 | None", text)
    return text.replace("NoneType", "None")


def method_page(method: MethodText) -> str:
    """The section of one method."""
    lines = [f"### {method.name}", "", method.summary, ""]
    lines += [method.description, ""] if method.description else []
    lines += [f"Kind: `{method.kind}`. Version {method.version}. Source: {method.reference.rstrip('.')}.", ""]
    lines += [f"- reads `{name}`: {text}" for name, text in method.reads.items()]
    lines += [f"- array `{name}` ({', '.join(dims)})" for name, dims in method.arrays.items()]
    lines += ["", *_table("Option", method.options, default=True)] if method.options else []
    lines += ["", *_table("Result", method.results, default=False)] if method.results else []
    return "\n".join(lines)


def _table(title: str, fields: tuple[FieldText, ...], default: bool) -> Iterator[str]:
    yield f"| {title} | Type |" + (" Default |" if default else "") + " Meaning |"
    yield "| --- | --- |" + (" --- |" if default else "") + " --- |"
    for field in fields:
        given = (
            f" {_cell('required' if field.default is None else f'`{field.default}`')} |" if default else ""
        )
        yield f"| `{field.name}` | `{_cell(field.type)}` |{given} {_cell(field.meaning)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def methods_page() -> str:
    """The whole page."""
    from tasks.methods.contract import list_methods

    methods = [describe_method(name) for name in list_methods()]
    families = list(dict.fromkeys(method.name.partition(".")[0] for method in methods))
    lines = [
        "# Methods",
        "",
        "Made from the method files by `python -m pipelines.methods_page`; do not edit.",
        "",
    ]
    lines += [
        "| Method | Kind | Version | What it does |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| [{m.name}](#{m.name.replace('.', '')}) | {m.kind} | {m.version} | {_cell(m.summary)} |"
        for m in methods
    ]
    lines += ["", "Kinds:", "", *(f"- `{kind}`: {text}" for kind, text in KINDS.items())]
    lines += ["", INTERVAL]
    for family in families:
        lines += ["", f"## {family}"]
        for method in methods:
            lines += ["", method_page(method)] if method.name.startswith(f"{family}.") else []
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page."""
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(methods_page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
