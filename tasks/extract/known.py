"""Whether all code of a network is that of known packages, which keep what a forward changes in the network's own attributes.

Other code may keep it anywhere: in a global, in a closure, in the parameters themselves. No look at one forward could tell, so that
whatever is not recognised counts as unknown.
"""

import re
import sys
import sysconfig
from collections import deque
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from importlib.util import find_spec
from inspect import unwrap
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

KNOWN = ("torch", "transformers", "torchvision", "timm")
"""Packages whose modules may run in several threads, each in a copy of its own."""
PROCESS_WIDE = re.compile(
    r"\b(np|numpy)\.random\b|(?<![\w.])random\.\w+\(|^\s*global\s|sdpa_kernel|enable_\w*sdp|backends\.[\w.]+(\.flags\(|\s*=[^=])"
    r"|set_default_|manual_seed|set_rng_state|fork_rng|use_deterministic|set_num_threads",
    re.MULTILINE,
)
"""What a file of a known package other than torch says that draws from, or changes, what belongs to the process: some forwards do."""
_GENERATED = (torch.fx.GraphModule, torch.jit.ScriptModule)
_PLAIN_PACKAGES = ("builtins", "math", "operator", "_operator", "torch")
"""Built-in functions of these keep nothing."""
Seen = dict[int, object]
"""What was looked at; held, so that no other object gets its number."""


def is_known(network: nn.Module) -> bool:
    """Whether every class, function and object that a network holds is data, or code of `KNOWN` packages with no process-wide state.

    Hooks, generated and replaced methods, functions bound to variables, and attention functions of other code count as unknown.

    Cost: some milliseconds for a network of hundreds of modules.
    """
    hooked = torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks
    return not hooked and all(map(_is_library, _registered())) and _is_plain(network, {})


def _registered() -> Iterator[object]:
    """Attention functions that transformers looks up by name."""
    registry: Any = sys.modules.get("transformers.modeling_utils")
    if registry is not None:
        yield from registry.ALL_ATTENTION_FUNCTIONS.values()
    masks: Any = sys.modules.get("transformers.masking_utils")
    if masks is not None:
        yield from masks.ALL_MASK_ATTENTION_FUNCTIONS.values()


def _is_plain(value: object, seen: Seen) -> bool:
    """Whether a value, with all that it holds, is data or known code."""
    if isinstance(value, type):
        return _is_class(value, seen)
    if id(value) in seen:
        return True
    seen[id(value)] = value
    if not _is_class(type(value), seen) or (isinstance(value, nn.Module) and _is_changed(value)):
        return False
    if isinstance(value, FunctionType) and (value.__closure__ or not _is_library(value)):
        return False
    if isinstance(value, BuiltinFunctionType):
        return str(value.__module__).partition(".")[0] in _PLAIN_PACKAGES
    return all(_is_plain(part, seen) for part in _parts(value))


def _is_changed(module: nn.Module) -> bool:
    """Whether another forward than that of its class may run, or something beside it."""
    generated = isinstance(module, _GENERATED) or "forward" in vars(module)
    return generated or bool(module._forward_hooks or module._forward_pre_hooks)


def _parts(value: object) -> Iterator[object]:
    """What a value holds; of a module without its hooks: those that are left are for state dicts."""
    if isinstance(value, Mapping):
        yield from value.keys()
        yield from value.values()
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        yield from value
    elif isinstance(value, partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    held = getattr(value, "__dict__", {})
    hooks = isinstance(value, nn.Module)
    yield from (part for name, part in held.items() if not (hooks and name.endswith("_hooks")))


def _is_class(kind: type, seen: Seen) -> bool:
    """Whether a class and its bases, of a module with all of their methods, are those of known packages or the standard library."""
    if id(kind) in seen:
        return True
    seen[id(kind)] = kind
    return all(_is_defined(base, issubclass(kind, nn.Module)) for base in kind.__mro__)


def _is_defined(kind: type, of_module: bool) -> bool:
    package = kind.__module__.partition(".")[0]
    if package in sys.stdlib_module_names or package == "numpy":
        return True
    if package not in KNOWN:
        return False
    if package != "torch" and "forward" in vars(kind) and _says(_file(kind.__module__), PROCESS_WIDE):
        return False
    if not of_module:
        return True
    methods = (getattr(value, "__func__", getattr(value, "fget", value)) for value in vars(kind).values())
    return all(_is_library(method) for method in methods if callable(method) and not isinstance(method, type))


def _is_library(function: Any) -> bool:
    """Whether a function, and what it wraps, stand in files of known packages; wrappers of the standard library are passed through."""
    codes = [getattr(part, "__code__", None) for part in (function, unwrap(function))]
    return all(code is not None and _is_library_file(code.co_filename) for code in codes)


def _is_library_file(file: str) -> bool:
    if file == "<string>":  # methods that dataclasses and named tuples make
        return True
    path = Path(file)
    standard = path.is_relative_to(_standard()) and "site-packages" not in path.parts
    return standard or any(path.is_relative_to(root) for root in _roots(KNOWN))


@lru_cache(maxsize=1)
def _standard() -> str:
    return sysconfig.get_paths()["stdlib"]


@lru_cache(maxsize=4)
def _roots(packages: tuple[str, ...]) -> tuple[str, ...]:
    """Folders of packages, those that are installed."""
    specs = [find_spec(name) for name in packages]
    return tuple(folder for spec in specs if spec for folder in spec.submodule_search_locations or ())


def _file(module: str) -> str | None:
    return getattr(sys.modules.get(module), "__file__", None)


@lru_cache(maxsize=1024)
def _says(file: str | None, pattern: re.Pattern[str]) -> bool:
    """Whether a file holds a pattern; also where it cannot be read."""
    try:
        return file is None or bool(pattern.search(Path(file).read_text(encoding="utf-8")))
    except OSError:
        return True
