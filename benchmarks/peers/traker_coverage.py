"""traker: vmap of grad over functional_call of all parameters, by its own FunctionalGradientComputer."""

import torch
from torch import Tensor, nn
from trak.gradient_computers import FunctionalGradientComputer

from benchmarks.coverage import Case, Found, answer


def gradients(case: Case) -> Found:
    """Of one network."""

    class Output:
        """A model output function, as its users write them."""

        @staticmethod
        def get_output(
            network: nn.Module, weights: dict[str, Tensor], buffers: dict[str, Tensor], sample: Tensor
        ) -> Tensor:
            """The loss of one sample."""

            def call(values: Tensor, **options: object) -> object:
                return torch.func.functional_call(network, (weights, buffers), (values,), options)

            return case.losses(sample[None], call)[0]

    size = sum(parameter.numel() for parameter in case.network.parameters())
    computer = FunctionalGradientComputer(case.network, Output(), size, torch.float64, torch.device("cpu"))
    return Found(computer.compute_per_sample_grad((case.values,)))


if __name__ == "__main__":
    answer({"traker": gradients}, "traker", eager=True)
