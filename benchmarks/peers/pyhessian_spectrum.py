"""PyHessian: leading eigenvalues by power iteration and the trace by Hutchinson, of a network and data in a file; one JSON line."""

import json
import sys
import time

import torch
from pyhessian import hessian
from torch import nn

torch.set_num_threads(1)
given = torch.load(sys.argv[1], weights_only=True)
network = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
network.load_state_dict(given["weights"])
batches = list(zip(given["x"].split(64), given["y"].split(64), strict=True))
made = hessian(network, nn.CrossEntropyLoss(), dataloader=batches, cuda=False)
torch.manual_seed(0)
begun = time.perf_counter()
values, _ = made.eigenvalues(maxIter=200, tol=1e-4, top_n=3)
seconds = time.perf_counter() - begun
trace = made.trace(maxIter=60, tol=1e-3)
print(json.dumps({"eigenvalues": values, "trace": trace, "seconds": seconds}))
