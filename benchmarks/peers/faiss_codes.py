"""faiss: product quantisation by its index factory, trained or encoding, rows in memory."""

from pathlib import Path

import faiss
import numpy as np
from child import arguments, serve

options = arguments()
faiss.omp_set_num_threads(options["threads"])
given, coded = np.load(options["given"]), np.load(options["coded"])


def trained() -> "faiss.Index":
    """Codebooks of the given rows."""
    index = faiss.index_factory(given.shape[1], options["factory"])
    index.train(given)
    return index


ready = trained() if options["does"] == "encode" else None


def task(out: str) -> None:
    """Training, or codes of the other rows; nothing is written."""
    Path(out).mkdir(parents=True)
    if ready is None:
        trained()
    else:
        ready.sa_encode(coded)


def read(out: str, to: str, samples: int) -> None:
    """Decoded rows."""
    np.save(to, ready.sa_decode(ready.sa_encode(coded))[None])


serve(task, read)
