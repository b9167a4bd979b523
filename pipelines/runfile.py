"""A run file: YAML to RunSpec, with `--set` overrides and messages that name file, line, key and cure."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from pipelines.explain import KeyPath, dotted, explain
from schemas.errors import NotFoundError, SpecError, nearest
from schemas.run import RunSpec
from schemas.urls import hide_secrets

NAMED = ("captures", "stages")
"""Top-level mappings whose keys are names that the user chooses."""


class Document(NamedTuple):
    """A parsed file."""

    data: Any
    lines: Mapping[KeyPath, int]
    """Key path to line, from 1."""


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> RunSpec:
    """The run that a YAML (or JSON) file describes.

    Relative paths inside the file are relative to the current folder.

    Args:
        path: the run file.
        overrides: `a.b=c` each; c is read as YAML, list items are named by their index.

    Raises:
        NotFoundError: if there is no such file.
        SpecError: if the file is not YAML or does not describe a run; one line per mistake.
    """
    return parse_run(read_text(Path(path)), str(path), overrides)


def parse_run(text: str, name: str, overrides: Sequence[str] = ()) -> RunSpec:
    """The run that some YAML describes; `name` stands for the file in messages."""
    document = read_document(text, name)
    if not isinstance(document.data, dict):
        raise SpecError(
            f"{name}: found {describe(document.data)}, expected a mapping with at least `name` and `captures`"
        )
    data, given = apply_overrides(document.data, overrides)

    def where(key_path: KeyPath) -> str:
        source = next((text for at, text in given.items() if key_path[: len(at)] == at), None)
        return f"--set {source}" if source else f"{name}:{line_of(key_path, document.lines)}"

    try:
        return RunSpec.model_validate(data)
    except ValidationError as error:
        raise SpecError(explain(error, RunSpec, data, where)) from None


def read_text(path: Path, kind: str = "run file") -> str:
    """The text of a file that a user wrote; `kind` stands for it in messages.

    Raises:
        NotFoundError: if there is no such file; with the nearest.
        SpecError: if it is not UTF-8, or its name cannot be that of a file.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        there = sorted(str(p) for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise NotFoundError(
            f"there is no {kind} {str(path)!r} (relative paths start at {Path.cwd()}); "
            f"nearest: {nearest(str(path), there)}"
        ) from None
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{path}: found bytes that are not UTF-8 ({error.reason}), expected YAML text"
        ) from None
    except ValueError as error:
        raise SpecError(f"{str(path)!r} cannot name a {kind}: {error}") from None


def read_document(text: str, name: str) -> Document:
    """YAML with the line of every key; a key given twice is refused."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError(yaml_message(error, name)) from None
    lines: dict[KeyPath, int] = {}
    for path, line in walk(node, ()):
        if path in lines:
            raise SpecError(
                f"{name}:{line}: {dotted(path)}: found the key twice, first on line {lines[path]}; remove one"
            )
        lines[path] = line
    return Document(data, lines)


def yaml_message(error: Exception, name: str) -> str:
    """What the YAML parser found, without its traceback."""
    mark = getattr(error, "problem_mark", None)
    place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark is not None else name
    problem = getattr(error, "problem", None) or str(error)
    return f"{place}: found text that is not YAML ({problem}); check indentation, colons and quotes there"


def walk(
    node: yaml.Node | None, path: KeyPath, seen: frozenset[int] = frozenset()
) -> Iterator[tuple[KeyPath, int]]:
    """Key path and line of every key and item below a node; an anchor inside itself is entered once."""
    if node is None or id(node) in seen:
        return
    seen |= {id(node)}
    if isinstance(node, yaml.MappingNode):
        children = [(key.value, key.start_mark, value) for key, value in node.value if key.value != "<<"]
    elif isinstance(node, yaml.SequenceNode):
        children = [(index, value.start_mark, value) for index, value in enumerate(node.value)]
    else:
        return
    for part, mark, value in children:
        yield (*path, part), mark.line + 1
        yield from walk(value, (*path, part), seen)


def line_of(path: KeyPath, lines: Mapping[KeyPath, int]) -> int:
    """The line of a key path, or of its nearest parent that the file has."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def apply_overrides(
    data: dict[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """The data with `a.b=c` applied, and which key paths were set by which override."""
    changed = copy.deepcopy(data)
    given: dict[KeyPath, str] = {}
    for text in overrides:
        path, value = parse_override(text)
        if len(path) > 2 and path[0] in NAMED:
            check_name(text, path, changed)
        put(changed, path, value, text)
        given[path] = text
    return changed, given


def parse_override(text: str) -> tuple[KeyPath, Any]:
    """`a.0.b=c` as key path and value."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise SpecError(
            f"--set {text}: found no `key.path=value`; write for example --set execution.workers=2"
        )
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError(yaml_message(error, f"--set {hide_secrets(text, '***')}")) from None
    return tuple(int(part) if part.isdecimal() else part for part in parts), parsed


def check_name(text: str, path: KeyPath, data: Mapping[str, Any]) -> None:
    """Refuse to set something inside a capture or stage that the run does not have."""
    names = data.get(str(path[0])) or {}
    if isinstance(names, dict) and path[1] not in names:
        close = nearest(str(path[1]), map(str, names))
        raise SpecError(f"--set {text}: the run has no {path[0]}.{path[1]}; nearest: {close}")


def put(data: Any, path: KeyPath, value: Any, text: str) -> None:
    """Set a value inside nested mappings and lists, making mappings where there are none."""
    *parents, last = path
    for depth, part in enumerate(parents):
        if isinstance(data, dict) and data.get(part) is None:
            data[part] = {}
        data = item(data, part, path[: depth + 1], text)
    if not isinstance(data, dict):
        item(data, last, path, text)
    data[last] = value


def item(data: Any, part: str | int, path: KeyPath, text: str) -> Any:
    """One step into nested data."""
    if isinstance(data, dict):
        return data[part]
    if isinstance(data, list) and isinstance(part, int) and part < len(data):
        return data[part]
    parent = dotted(path[:-1])
    raise SpecError(
        f"--set {text}: found {describe(data)} at {parent}, which has no {part!r}; set {parent} itself"
    )


def describe(value: Any) -> str:
    """What a value is, for a message."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"{value!r}"
