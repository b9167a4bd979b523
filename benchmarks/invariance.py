"""Whether a sample's gradient depends on what lies beside it in its batch: `python -m benchmarks.invariance [--samples 2000] [--dtype
float32]`.

Every sample of the docstrings goes through MiniLM in the batches of a capture, and alone; all its projected gradients (two-sided, p = 16,
every parameter of the
encoder) are compared as one vector. Results go to benchmarks/results/invariance.json.
"""

import argparse
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gradients import MINILM
from benchmarks.protocol import environment, save, saved
from schemas.capture import CaptureRequest
from schemas.data import Data
from schemas.gradients import Kronecker
from schemas.model import TransformersModel
from tasks.extract.backward import losses_of
from tasks.extract.batches import Batch, pack
from tasks.extract.collect import running
from tasks.extract.data import open_source
from tasks.extract.encode import make_encoder
from tasks.extract.gradients.gradient_plan import GradientPlan, make_plan
from tasks.extract.gradients.sample_gradients import sample_gradients
from tasks.extract.losses import Objective
from tasks.extract.models import Network, load
from tasks.extract.targets import count_classes

LIMITS = {"float32": (1e-6, 1e-5), "float64": (1e-12, 1e-12)}
"""1 - cosine, and relative difference of norms."""


def main() -> None:
    """Compare all samples, print and save what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--dtype", choices=list(LIMITS), default="float32")
    options = parser.parse_args()
    request = CaptureRequest.model_validate(
        {
            "model": {"kind": "transformers", "name": MINILM},
            "data": {"source": {"kind": "stdlib-docstrings"}},
            "loss": {"kind": "similarity", "label": "kind"},
            "max_length": 128,
            "too_long": "truncate",
        }
    )
    found = compare(request, options.samples, options.dtype)
    results = saved("invariance") | {
        "environment": environment(1, ("torch", "transformers")),
        options.dtype: found,
    }
    print(f"{options.dtype}: {found}\nsaved {save('invariance', results)}")


def compare(request: CaptureRequest, n: int, dtype: str) -> dict[str, Any]:
    """Cosines and norms of samples in batches and alone."""
    torch.set_num_threads(1)
    source = open_source(Data(source=request.data.source))
    encoder = make_encoder(source, np.arange(n), TransformersModel(name=MINILM), request)
    network = load(request.model)
    network.module.to(getattr(torch, dtype))
    names = [name for name, _ in network.module.named_parameters() if name.startswith("encoder.")]
    plan = make_plan(network.module, names, Kronecker(dimension=16), 0)
    assert request.loss is not None
    objective = Objective(request.loss, n_classes=count_classes(source, request.loss))
    cosines, norms = [], []
    for places in pack(
        encoder.lengths().tolist(), request.batch_tokens, request.batch_samples, request.batch_overhead
    ):
        together = gradients(network, encoder.batch(places), objective, plan, request)
        alone = torch.cat([gradients(network, encoder.batch([k]), objective, plan, request) for k in places])
        cosines.append(torch.nn.functional.cosine_similarity(together, alone))
        norms.append(together.norm(dim=1) / alone.norm(dim=1) - 1)
    cosine, norm = 1 - torch.cat(cosines), torch.cat(norms).abs()
    limits = LIMITS[dtype]
    passed = int(((cosine <= limits[0]) & (norm <= limits[1])).sum())
    return {
        "samples": n,
        "passed": passed,
        "worst_cosine_gap": float(cosine.max()),
        "worst_norm": float(norm.max()),
    }


def gradients(
    network: Network, batch: Batch, objective: Objective, plan: GradientPlan, request: CaptureRequest
) -> Tensor:
    """float64 [sample, feature]: all parameters' rows beside each other."""
    losses = losses_of(network, batch, objective)
    with running(network, batch, request.precision), torch.enable_grad():
        found = sample_gradients(network.module, losses, batch.n_samples, plan)
    return torch.cat(list(found.values.values()), dim=1).double()


if __name__ == "__main__":
    main()
