"""Whether a capture that keeps states only can answer a stage, from its spec alone."""

from collections.abc import Mapping

from schemas.base import Frozen
from tasks.engine.fitting import Place
from tasks.engine.fusable import reads_again, without_rows
from tasks.engine.fusion import fused_reduction
from tasks.engine.reduction import make_reduction
from tasks.methods.contract import Inputs, load_method


def check_kept(
    place: Place,
    method: str,
    config: Frozen,
    inputs: Inputs,
    own: Mapping[str, tuple[str, ...]],
    allowed: tuple[str, ...] = (),
) -> None:
    """Refuse a stage whose state is none of those that are made with the rows.

    Args:
        place: the site, of a capture that keeps states.
        method: of the stage; it takes rows alone.
        config: its options.
        inputs: as the stage is given them.
        own: names of the codes of the capture's own labels.
        allowed: packages outside the project whose methods may run.

    Raises:
        MethodError: naming the entry of `fuse` that makes the state, or why none does.
    """
    module = load_method(method, allowed)
    if module.KIND == "reduce" and not reads_again(module, config) and len(module.READS) == 1:
        wanted = make_reduction(method, module, config, module.start(inputs, config), inputs)
        fused = (fused_reduction(place.spec, place.layout, c, own, allowed) for c in place.spec.request.fuse)
        if wanted.id in {one.reduction.id for one in fused}:
            return
    raise without_rows(place.ref.label, place.spec, method, config, allowed)
