"""opacus: which gradients GradSampleModule gives, in training mode but for batch norms, which are frozen."""

from opacus import GradSampleModule
from torch import nn

from benchmarks.coverage import Case, Found, answer


def gradients(case: Case) -> Found:
    """Of one network."""
    plain = case.network.train()
    for part in plain.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats:
            part.eval().requires_grad_(False)
    network = GradSampleModule(plain, loss_reduction="sum", strict=False)
    case.losses(case.values, network).sum().backward()
    found = {name: getattr(parameter, "grad_sample", None) for name, parameter in plain.named_parameters()}
    return Found({name: given for name, given in found.items() if given is not None})


if __name__ == "__main__":
    answer({"opacus": gradients}, "opacus")
