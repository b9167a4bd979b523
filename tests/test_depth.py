"""Kinds and depths of the sites of well-known networks."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.depth import ATTENTION, IN_ORDER, MLP, RESIDUAL, along_network, places

BERT = {
    "embeddings": (RESIDUAL, "emb"),
    "encoder.layer.0": (RESIDUAL, "0"),
    "encoder.layer.11": (RESIDUAL, "11"),
    "encoder.layer.0.output": ("encoder.layer.*.output", "0"),
    "encoder.layer.0.attention": (ATTENTION, "0"),
    "encoder.layer.0.output.dense": (MLP, "0"),
    "encoder.layer.0.intermediate": ("encoder.layer.*.intermediate", "0"),
}
GPT2 = {
    "wte": (RESIDUAL, "emb"),
    "wpe": ("wpe", ""),
    "h.0": (RESIDUAL, "0"),
    "h.1.attn": (ATTENTION, "1"),
    "h.1.mlp": (MLP, "1"),
    "ln_f": (RESIDUAL, "end"),
}
LLAMA = {
    "model.embed_tokens": (RESIDUAL, "emb"),
    "model.layers.2": (RESIDUAL, "2"),
    "model.layers.2.self_attn": (ATTENTION, "2"),
    "model.layers.2.mlp": (MLP, "2"),
    "model.norm": (RESIDUAL, "end"),
}
PLAIN = {"conv1": ("conv1", ""), "0": ("*", "0"), "": ("network", "")}


@pytest.mark.parametrize("network", [BERT, GPT2, LLAMA, PLAIN], ids=["bert", "gpt2", "llama", "plain"])
def test_kinds_and_labels(network: dict[str, tuple[str, str]]) -> None:
    found = places([f"{module}:out:0" for module in network])
    assert {site.removesuffix(":out:0"): (p.kind, p.label) for site, p in found.items()} == network


def test_a_reused_module_is_told_apart_by_its_calls() -> None:
    sites = [f"encoder.albert_layer_groups.0.albert_layers.0:out:{call}" for call in range(3)]
    assert [(p.kind, p.order) for p in places(sites).values()] == [(RESIDUAL, (i,)) for i in range(3)]


def test_input_and_output_of_a_block_are_two_kinds() -> None:
    found = places(["h.0:in:0", "h.0:out:0", "h.1:in:0", "h.1:out:0"])
    assert [p.kind for p in found.values()] == ["h.* (input)", RESIDUAL] * 2


def test_depth_sorts_embedding_layers_end() -> None:
    found = places(["ln_f:out:0", "h.10:out:0", "h.2:out:0", "wte:out:0"])
    assert sorted(found, key=lambda site: found[site].order) == [
        "wte:out:0",
        "h.2:out:0",
        "h.10:out:0",
        "ln_f:out:0",
    ]


PART = st.one_of(
    st.integers(0, 30).map(str), st.sampled_from(["layer", "h", "attn", "mlp", "norm", "embed", "fc1"])
)
SITES = st.lists(
    st.builds(
        lambda parts, call: f"{'.'.join(parts)}:out:{call}", st.lists(PART, max_size=5), st.integers(0, 2)
    ),
    unique=True,
    max_size=20,
)


@given(SITES)
@example(["0.attn:out:0", "attn:out:0", "attn:out:1"])
def test_no_two_sites_share_a_place(sites: list[str]) -> None:
    found = places(sites)
    assert list(found) == sites
    assert len({(p.kind, p.order) for p in found.values()}) == len(sites)


def test_sites_whose_names_do_not_repeat_are_one_line_in_their_order() -> None:
    net = [f"{name}:out:0" for name in ("first.0", "first.1", "second.0", "hidden", "readout")]
    found = along_network(net, places(net))
    assert [(p.kind, p.order, p.label) for p in found.values()] == [
        (IN_ORDER, (n,), site.removesuffix(":out:0")) for n, site in enumerate(net)
    ]
    layers = [f"h.{n}:out:0" for n in range(3)]
    for sites in (layers, [*layers, "head:out:0", "tail:out:0"], ["one:out:0", "two:out:0"]):
        assert along_network(sites, places(sites)) == places(sites)
