"""Data of `anomaly.yaml` and `watch.yaml`: docstrings and digits in parts that share none, and what is neither.

Strange texts are docstrings whose letters were shuffled in each word, source code without its docstrings, and sentences in other
languages; strange images are pieces of photographs, digits in negative, and noise. All of it comes with Python and scikit-learn, but for
the sentences.
"""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

from schemas.data import Data, StdlibDocstrings
from tasks.extract.data import open_source

Part = Literal["normal", "known", "new"]
PARTS: tuple[Part, ...] = ("normal", "known", "new")
Texts = list[tuple[str, str]]
"""Each with what it is."""
Images = list[tuple[Tensor, str]]
"""float32 [1, 8, 8] each, in 0..1, with what it is."""
T = TypeVar("T")
LONGEST = 1200
"""Characters of a function's code."""


def docstrings(part: Part, n: int = 400, seed: int = 0) -> Texts:
    """So many docstrings of the standard library, others for each part."""
    source = open_source(Data(source=StdlibDocstrings()), None)
    order = np.random.default_rng(seed).permutation(len(source)).tolist()
    chosen = order[PARTS.index(part) :: len(PARTS)][:n]
    return [(str(source[k].value), "docstring") for k in chosen]


def mixed_texts(n: int = 120, each: int = 40, seed: int = 0) -> Texts:
    """New docstrings, and so many of each kind of strange texts, in turns."""
    rng = np.random.default_rng(seed)
    plain = docstrings("new", n + each, seed)
    shuffled = [(_shuffled(text, rng), "shuffled letters") for text, _ in plain[n:]]
    code = [(text, "code") for text in _code(each, rng)]
    lines = (Path(__file__).parent / "other_languages.txt").read_text(encoding="utf-8").splitlines()
    foreign = [(lines[int(k)], "other language") for k in rng.permutation(len(lines))[:each]]
    return _in_turns(plain[:n], shuffled + code + foreign, rng)


def digits(part: Part, seed: int = 0) -> Images:
    """The digits of scikit-learn, a third of them for each part."""
    found = load_digits()
    order = np.random.default_rng(seed).permutation(len(found.images))
    chosen = order[PARTS.index(part) :: len(PARTS)]
    return [(_image(found.images[k] / 16), str(found.target[k])) for k in chosen]


def mixed_images(n: int = 300, each: int = 60, seed: int = 0) -> Images:
    """New digits, all called `digit`, and so many of each kind of strange images, in turns."""
    rng = np.random.default_rng(seed)
    plain = [(image, "digit") for image, _ in digits("new", seed)]
    negative = [(1 - image, "negative") for image, _ in plain[n : n + each]]
    noise = [(_image(rng.random((8, 8))), "noise") for _ in range(each)]
    pieces = [(_image(piece), "photograph") for piece in _pieces(each, rng)]
    return _in_turns(plain[:n], negative + noise + pieces, rng)


def _in_turns(plain: list[T], strange: list[T], rng: np.random.Generator) -> list[T]:
    both = plain + strange
    return [both[int(k)] for k in rng.permutation(len(both))]


def _shuffled(text: str, rng: np.random.Generator) -> str:
    return " ".join("".join(word[int(k)] for k in rng.permutation(len(word))) for word in text.split())


def _code(n: int, rng: np.random.Generator) -> list[str]:
    """Functions of the standard library."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-z]*.py"))
    found: list[str] = []
    for k in rng.permutation(len(files)):
        found += list(_functions(files[int(k)].read_text(encoding="utf-8")))[:3]
        if len(found) >= n:
            break
    return found[:n]


def _functions(module: str) -> Iterator[str]:
    """Those that are not short, without docstrings and comments."""
    for node in ast.walk(ast.parse(module)):
        if isinstance(node, ast.FunctionDef) and len(node.body) > 3:
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:]
            yield ast.unparse(node)[:LONGEST]


def _pieces(n: int, rng: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """Of 64 x 64 pixels, in grey and made small."""
    photographs = [np.asarray(image, dtype=np.float64).mean(2) / 255 for image in load_sample_images().images]
    for k in range(n):
        whole = photographs[k % len(photographs)]
        top, left = (int(rng.integers(0, side - 64)) for side in whole.shape)
        yield whole[top : top + 64, left : left + 64].reshape(8, 8, 8, 8).mean((1, 3))


def _image(values: NDArray[np.float64]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).unsqueeze(0)
