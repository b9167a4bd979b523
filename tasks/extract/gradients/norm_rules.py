"""Rules of norm layers: weight times what was normalised, and a bias."""

from collections.abc import Callable, Iterator

from torch import Tensor
from torch.nn import functional as F

from tasks.extract.gradients.call import Call, NoRule, Use, kept, summed
from tasks.extract.gradients.terms import Values


def _normalised(
    call: Call, weight_at: int, bias_at: int, plain: Callable[[Tensor], Tensor], channels: bool
) -> Iterator[Use]:
    """A norm layer: weight x normalised + bias, per feature or per channel."""
    x, weight, bias = call.get(0, "input"), call.get(weight_at, "weight"), call.get(bias_at, "bias")
    again = kept(x.detach())

    def facing(values: Tensor) -> Tensor:
        return values.movedim(1, -1) if channels else values

    for parameter, factor in ((weight, lambda g: g * plain(again())), (bias, lambda g: g)):
        name = call.name(parameter)
        if name is not None:
            if len(call.out) != call.n and channels:
                raise NoRule(
                    f"its first axis does not count the {call.n} samples: shape {tuple(call.out.shape)}"
                )
            shape = tuple(parameter.shape)
            summed(facing(call.out.detach()), shape, call.n)
            yield _norm_use(call, name, shape, factor, facing)


def _norm_use(
    call: Call,
    name: str,
    shape: tuple[int, ...],
    factor: Callable[[Tensor], Tensor],
    facing: Callable[[Tensor], Tensor],
) -> Use:
    n = call.n
    return Use(name, lambda g: Values(summed(facing(factor(g)), shape, n)))


def layer_norm(call: Call) -> Iterator[Use]:
    """Over the last axes."""
    shape, eps = call.get(1, "normalized_shape"), call.get(4, "eps", 1e-5)
    yield from _normalised(call, 2, 3, lambda x: F.layer_norm(x, shape, None, None, eps), channels=False)


def rms_norm(call: Call) -> Iterator[Use]:
    """Over the last axes, without mean or bias."""
    shape, eps = call.get(1, "normalized_shape"), call.get(3, "eps")
    yield from _normalised(call, 2, 99, lambda x: F.rms_norm(x, shape, None, eps), channels=False)


def group_norm(call: Call) -> Iterator[Use]:
    """Over groups of channels."""
    groups, eps = call.get(1, "num_groups"), call.get(4, "eps", 1e-5)
    yield from _normalised(call, 2, 3, lambda x: F.group_norm(x, groups, None, None, eps), channels=True)


def batch_norm(call: Call) -> Iterator[Use]:
    """With running statistics; those of a batch would make samples meet."""
    mean, variance, eps = call.get(1, "running_mean"), call.get(2, "running_var"), call.get(7, "eps", 1e-5)
    if call.get(5, "training", False) or mean is None:
        raise NoRule("batch normalisation takes the statistics of the batch")
    yield from _normalised(
        call, 3, 4, lambda x: F.batch_norm(x, mean, variance, None, None, False, 0.0, eps), channels=True
    )


def instance_norm(call: Call) -> Iterator[Use]:
    """Over each channel of each sample."""
    mean, variance = call.get(1, "running_mean"), call.get(2, "running_var")
    own, momentum, eps = (
        call.get(5, "use_input_stats", True),
        call.get(6, "momentum", 0.1),
        call.get(7, "eps", 1e-5),
    )
    if own and mean is not None:
        raise NoRule("instance normalisation changes its running statistics")
    yield from _normalised(
        call,
        3,
        4,
        lambda x: F.instance_norm(x, mean, variance, None, None, own, momentum, eps),
        channels=True,
    )
