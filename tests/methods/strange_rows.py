"""Normal rows of three classes, new ones of which the last sixty are strange, and a last layer: what tests of detectors share."""

from functools import partial

import numpy as np
import torch

from tests.methods import detectors

WIDTH, CLASSES = 12, 3
LAYER = "{module}.weight", "{module}.bias"


RNG = np.random.default_rng(0)
MIX = RNG.standard_normal((WIDTH, WIDTH)) * np.geomspace(3, 0.05, WIDTH)[:, None]
CENTRES = 4 * RNG.standard_normal((CLASSES, WIDTH))
CODE = np.arange(600) % CLASSES
NORMAL = CENTRES[CODE] + RNG.standard_normal((600, WIDTH)) @ MIX
NEW = np.concatenate(
    [CENTRES[CODE[:200]] + RNG.standard_normal((200, WIDTH)) @ MIX, 5 + 3 * RNG.standard_normal((60, WIDTH))]
)
STRANGE = np.arange(260) >= 200
LAYERS = {
    LAYER[0]: torch.from_numpy(RNG.standard_normal((5, WIDTH))),
    LAYER[1]: torch.from_numpy(RNG.standard_normal(5)),
}
Fitted, scores = (partial(made, weights=LAYERS) for made in (detectors.Fitted, detectors.scores))
