"""Which class mean each row is nearest to, counted in groups of samples: the second round of a method that compares classes (NC4)."""

import torch
from torch import Tensor

from tasks.methods import classifier
from tasks.methods.contract import Block, State
from tasks.numerics import class_moments
from tasks.numerics.proportions import grouped
from tasks.numerics.split import spread


def counted(block: Block, code: Tensor, carry: State, groups: int) -> State:
    """Hits and rows of each group, and of each class.

    Args:
        block: rows as `x`.
        code: [row], -1 for none.
        carry: `code` and `mean` of the classes, and what `classifier.carried` gives.
        groups: that samples are spread over.
    """
    keep = code >= 0 if block.weight is None else (code >= 0) & (block.weight > 0)
    x, code, group = block["x"][keep], code[keep], spread(block.sample[keep], groups)
    place = torch.searchsorted(carry["code"], code)
    nearest = class_moments.nearest(x, carry["mean"])
    right = (nearest == place).long()
    none = torch.zeros(groups, dtype=torch.int64, device=code.device)
    state = {
        "group.rows": none.index_add(0, group, torch.ones_like(right)),
        "group.right": none.index_add(0, group, right),
    }
    per_class = torch.zeros_like(carry["n"])
    state |= {"class.rows": per_class.index_add(0, place, torch.ones_like(right))}
    state |= {"class.right": per_class.index_add(0, place, right)}
    if "weight" in carry:
        said = classifier.said(x, carry)
        state["group.agree"] = none.index_add(0, group, (carry["row"][nearest] == said).long())
    return state


def shares(counts: State | None, confidence: float, per_row: float) -> dict[str, float | None]:
    """Fields of a result: shares of rows, with intervals; None for what was not counted. `per_row` are samples for each row."""
    found: dict[str, float | None] = {"nearest_is_label_classes": None}
    for name, key in (("nearest_is_label", "group.right"), ("nearest_is_classifier", "group.agree")):
        found |= dict.fromkeys((name, f"{name}_low", f"{name}_high"))
        if counts is not None and key in counts:
            rows = counts["group.rows"].cpu()
            share = grouped(counts[key].cpu(), rows, confidence, per_row * int(rows.sum()))
            found |= {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high}
    if counts is not None:
        found["nearest_is_label_classes"] = float(
            (counts["class.right"].double() / counts["class.rows"]).nanmean()
        )
    return found
