"""TensorLy: Tucker decompositions of a tensor in a file, of all modes or of some, with its defaults."""

from pathlib import Path

import numpy as np
from child import arguments, serve
from tensorly import tucker_to_tensor
from tensorly.decomposition import partial_tucker, tucker
from tensorly.tenalg import multi_mode_dot

options = arguments()
tensor = np.load(options["tensor"])
how = {} if options["tolerance"] is None else {"tol": options["tolerance"]}
modes = [mode for mode, rank in enumerate(options["shape"]) if rank < tensor.shape[mode]]


def decomposed() -> np.ndarray:
    """What the decomposition stands for."""
    if len(modes) == tensor.ndim:
        return tucker_to_tensor(tucker(tensor, options["shape"], **how))
    (core, bases), _ = partial_tucker(tensor, [options["shape"][mode] for mode in modes], modes=modes, **how)
    return multi_mode_dot(core, bases, modes=modes)


def task(out: str) -> None:
    """Nothing is written."""
    Path(out).mkdir(parents=True)
    decomposed()


def read(out: str, to: str, samples: int) -> None:
    """The relative error."""
    np.save(to, np.array([np.linalg.norm(decomposed() - tensor) / np.linalg.norm(tensor)]))


serve(task, read)
