"""Which methods can run while rows are captured, and what to tell of those that cannot."""

from types import ModuleType

import yaml

from schemas.base import Frozen
from schemas.capture import CaptureSpec, MethodCall
from schemas.errors import MethodError
from tasks.engine.reduction import row_labels, rows_ports, weight_label
from tasks.methods.contract import ArtifactPort, GraphPort, load_method


def check_fusable(call: MethodCall, allowed: tuple[str, ...] = ()) -> bool:
    """Whether the method reads labels (of their own, or as weights), if it can run while rows are captured.

    Raises:
        MethodError: if it needs more than one pass, another artifact, rows of two sites, or weights.
    """
    why = unfusable(call, allowed)
    if why:
        raise MethodError(
            f"{call.method} cannot be fused, because {why}; only one-pass reductions of one site can: make it a stage instead"
        )
    module = load_method(call.method, allowed)
    config = module.Config.model_validate(call.config)
    return any(port.labels for port in rows_ports(module).values()) or weight_label(config) is not None


def unfusable(call: MethodCall, allowed: tuple[str, ...] = ()) -> str:
    """Why a method cannot run while rows are captured; empty if it can."""
    module = load_method(call.method, allowed)
    config = module.Config.model_validate(call.config)
    ports = rows_ports(module)
    reasons = [
        (module.KIND != "reduce", f"it is of kind {module.KIND}"),
        (reads_again(module, config), "it reads the rows several times"),
        (any(isinstance(p, ArtifactPort) for p in module.READS.values()), "it takes an artifact"),
        (any(isinstance(p, GraphPort) for p in module.READS.values()), "it takes a graph"),
        (len(ports) != 1, f"it has {len(ports)} ports of rows"),
        (row_labels(module, config) != (), "the tokens of neighbouring shards are not there yet"),
        (hasattr(module, "parameters") and module.parameters(config), "it reads weights of the network"),
    ]
    return next((reason for wrong, reason in reasons if wrong), "")


def reads_again(module: ModuleType, config: Frozen) -> bool:
    """Whether a method surely takes several passes."""
    return hasattr(module, "update") and not (hasattr(module, "one_pass") and module.one_pass(config))


def without_rows(
    where: str, spec: CaptureSpec, method: str, config: Frozen, allowed: tuple[str, ...] = ()
) -> MethodError:
    """What a stage is told that reads a capture which keeps states only, none of which is its own.

    Args:
        where: capture and site.
        spec: the capture.
        method: of the stage.
        config: its options; those that are not the method's own are spelled out.
        allowed: packages outside the project whose methods may run.
    """
    kept = ", ".join(dict.fromkeys(call.method for call in spec.request.fuse)) or "fused methods"
    options = config.model_dump(mode="json", exclude_defaults=True)
    why = unfusable(MethodCall(method=method, config=options), allowed)
    entry = yaml.safe_dump(
        {"method": method, **({"config": options} if options else {})},
        default_flow_style=True,
        sort_keys=False,
        width=10_000,
    ).strip()
    cure = f"{method} cannot be fused, because {why}:" if why else f"add {entry} to its `fuse`, or"
    return MethodError(
        f"{where}: the capture keeps only the states of {kept}, no rows, and none is that of {method} with these options; {cure} "
        "capture with `keep: rows`"
    )
