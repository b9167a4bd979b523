"""The direction of imports, proven in fresh interpreters where what is forbidden cannot be imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "prefect", "dask", "distributed", "zarr", "matplotlib", "sklearn")
WRAPPERS = {"tasks.capture", "tasks.stage", "tasks.report"}

ALLOWED = {
    "schemas": {"schemas"},
    "tasks.numerics": {"schemas.errors", "tasks.numerics"},
    "tasks.store": {"schemas", "tasks.numerics", "tasks.store"},
    "tasks.extract": {"schemas", "tasks.numerics", "tasks.extract"},
    "tasks.compressed": {"tasks.compressed"},
    "tasks.methods": {"schemas", "tasks.numerics", "tasks.compressed", "tasks.methods"},
    "tasks": {"schemas", "tasks"},
    "pipelines": {"schemas", "tasks", "pipelines"},
    "subspan": {
        "schemas",
        "tasks.readers",
        "tasks.compressed",
        "tasks.monitor",
        "tasks.record",
        "tasks.trainer",
        "subspan",
        "pipelines.cli",
    },
}
"""Layer -> the project's modules that it may import."""


def modules() -> list[str]:
    paths = [
        p for part in ("schemas", "tasks", "pipelines", "subspan") for p in sorted((TOP / part).rglob("*.py"))
    ]
    return [".".join(p.relative_to(TOP).with_suffix("").parts).removesuffix(".__init__") for p in paths]


def imports(module: str) -> set[str]:
    """Every import of a module, lazy ones and those inside functions too."""
    path = TOP.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def layer(module: str) -> str:
    return max((name for name in ALLOWED if module == name or module.startswith(name + ".")), key=len)


def within(name: str, allowed: set[str]) -> bool:
    return any(name == top or name.startswith(top + ".") for top in allowed)


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module: str) -> None:
    ours = {
        name for name in imports(module) if name.split(".")[0] in ("schemas", "tasks", "pipelines", "subspan")
    }
    upward = {name for name in ours if not within(name, ALLOWED[layer(module)])}
    assert not upward, f"{module} imports {sorted(upward)}, allowed: {sorted(ALLOWED[layer(module)])}"


@pytest.mark.parametrize("module", modules())
def test_prefect_and_dask_stay_in_their_places(module: str) -> None:
    names = {name.split(".")[0] for name in imports(module)}
    if not module.startswith("pipelines") and module not in WRAPPERS:
        assert "prefect" not in names
    if not module.startswith("pipelines"):
        assert "distributed" not in names
    if module.startswith("schemas"):
        assert names.isdisjoint({*HEAVY, "numpy", "fsspec"})
    if module.startswith("tasks.store"):
        assert "torch" not in names
    if module.startswith(("tasks.numerics", "tasks.methods")):
        assert names.isdisjoint({"zarr", "fsspec", "xarray"})


def run_without(forbidden: tuple[str, ...], code: str) -> None:
    blocker = f"import sys\nfor name in {forbidden!r}: sys.modules[name] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", blocker + code], cwd=TOP, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_schemas_need_nothing_heavy() -> None:
    names = [m for m in modules() if m.startswith("schemas")]
    run_without((*HEAVY, "numpy", "fsspec", "yaml"), "".join(f"import {name}\n" for name in names))


def test_the_store_needs_no_torch() -> None:
    names = [m for m in modules() if m.startswith("tasks.store")]
    run_without(
        ("torch", "transformers", "prefect", "dask", "distributed"),
        "".join(f"import {name}\n" for name in names),
    )


def test_the_engine_and_the_readers_need_no_scheduler() -> None:
    names = ["tasks.engine", "tasks.readers", "tasks.produce", "tasks.drive", "tasks.unit"]
    run_without(("prefect", "distributed"), "".join(f"import {name}\n" for name in names))


def test_the_command_line_and_the_plan_start_light() -> None:
    run_without(
        ("torch", "transformers", "prefect", "dask", "distributed", "matplotlib", "sklearn"),
        "import pipelines.cli, pipelines.plan, pipelines.serial, pipelines.execute\n",
    )


def test_the_packages_are_ours() -> None:
    import pipelines
    import schemas
    import tasks

    for package in (pipelines, schemas, tasks):
        assert Path(package.__file__ or "").resolve().parent.parent == TOP
