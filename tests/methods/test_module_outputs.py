"""Outputs of modules: padding, several calls, modules that are not there, and sums of squares by hand."""

import torch
from torch import Tensor, nn

from tasks.methods import module_outputs


class Twice(nn.Module):
    """Goes through one layer twice, and through another once."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.last = nn.Linear(3, 3), nn.Linear(3, 2)
        self.tells = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.again(self.again(x)))
        self.tells((y, y))
        return y


def test_sums_of_squares_over_calls_without_padding() -> None:
    torch.manual_seed(0)
    one, two, x = Twice(), Twice(), torch.randn(4, 5, 3)
    mask = torch.rand(4, 5) > 0.3
    watched, kept = ("again", "last", "tells", "missing"), module_outputs.Kept()
    changed = module_outputs.Changed(kept)
    with torch.no_grad():
        for network, hear in ((one, kept.hear), (two, changed.hear)):
            with module_outputs.listening(network, watched, mask, hear):
                network(x)
            network(x)  # after which nothing is heard
        found = changed.squares(watched)
        first = [network.again(x) for network in (one, two)]
        second = [network.again(y) for network, y in zip((one, two), first, strict=True)]
        last = [network.last(y) for network, y in zip((one, two), second, strict=True)]
    assert {path: len(outputs) for path, outputs in kept.of.items()} == {"again": 2, "last": 1}
    for number, pairs in enumerate(([first, second], [last])):
        changed = sum((b - a)[mask].double().square().sum() for a, b in pairs)
        before = sum(a[mask].double().square().sum() for a, _ in pairs)
        torch.testing.assert_close(found[number], torch.stack([changed, before]), rtol=1e-6, atol=0)
    assert found[2:].isnan().all()


def test_outputs_of_other_shapes_are_not_compared() -> None:
    kept = module_outputs.Kept()
    kept.hear("a", torch.ones(2, 3))
    changed = module_outputs.Changed(kept)
    changed.hear("a", torch.ones(2, 4))
    assert changed.squares(("a",)).isnan().all()
    more = module_outputs.Changed(kept)
    more.hear("a", torch.ones(2, 3))
    assert more.squares(("a",)).tolist() == [[0.0, 6.0]]
    more.hear("a", torch.ones(2, 3))
    assert more.squares(("a",)).isnan().all()
    assert more.squares(()).shape == (0, 2)


def test_what_is_kept_is_not_written_into() -> None:
    """By a module that follows, in place."""
    kept, network = module_outputs.Kept(), nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))
    x = torch.randn(50, 3)
    with torch.no_grad(), module_outputs.listening(network, ("0",), None, kept.hear):
        network(x)
        torch.testing.assert_close(kept.of["0"][0], network[0](x))
