"""What a network offers, and what patterns mean."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from schemas.errors import ModelError, SpecError, UnknownNameError
from tasks.extract.batches import Batch
from tasks.extract.models import wrap
from tasks.extract.sites import SiteInfo, cut, glob, list_sites, resolve
from tests.extract.nets import LAYERS, build, conv_net, family_batch, images, text_batch


def infos_of(family: str, **options: Any) -> list[SiteInfo]:
    return list_sites(wrap(build(family, **options)), family_batch(family))


@pytest.fixture(scope="module")
def bert() -> list[SiteInfo]:
    return infos_of("bert")


def found(patterns: list[str], infos: list[SiteInfo], **options: Any) -> list[str]:
    return [str(layout.site) for layout in resolve(patterns, infos, **options)]


class Branches(nn.Module):
    """Outputs of every kind, a shared layer, and a part that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.many = Many()
        self.idle = nn.Linear(4, 4)
        self.flag = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.shared(self.shared(x))
        outputs = self.many(hidden_states=y)
        self.flag(x > 0)
        return outputs["state"] + outputs["rest"][0]


class Many(nn.Module):
    def forward(self, hidden_states: Tensor) -> dict[str, Any]:
        return {"note": "text", "state": hidden_states, "rest": (hidden_states * 2, hidden_states[:, :1])}


@pytest.fixture(scope="module")
def branches() -> list[SiteInfo]:
    return list_sites(wrap(Branches()), Batch({"": torch.randn(5, 4)}))


def test_spaces_of_a_convolutional_network():
    infos = {str(info.site): info for info in list_sites(wrap(conv_net()), images(4)) if info.usable}
    assert {name: (info.space, info.width) for name, info in infos.items() if ":out" in name} == {
        "stem:out:0": ("grid12x12", 8),
        "act:out:0": ("grid12x12", 8),
        "act:out:1": ("grid12x12", 8),
        "grouped:out:0": ("grid12x12", 8),
        "dilated:out:0": ("grid12x12", 8),
        "norm:out:0": ("grid12x12", 8),
        "strided:out:0": ("grid6x6", 16),
        "batch_norm:out:0": ("grid6x6", 16),
        "drop:out:0": ("sample", 16),
        "head:out:0": ("sample", 5),
        ":out:0": ("sample", 5),
    }
    assert infos["strided:in:0"].type_name == "Conv2d"
    assert infos["strided:in:0"].shape == (4, 8, 12, 12)


@pytest.mark.parametrize(
    ("family", "site", "space", "width"),
    [
        ("bert", "encoder.layer.0:out:0", "tokens", 32),
        ("bert", "encoder.layer.0.attention.self:out:0", "tokens", 32),
        ("bert", "pooler:out:0", "sample", 32),
        ("gpt2", "h.2.mlp.c_fc:out:0", "tokens", 128),
        ("llama", "layers.1.self_attn.k_proj:out:0", "tokens", 16),
        ("vit", "layers.0:out:0", "seq17", 32),
        ("vit", "embeddings.patch_embeddings:out:0", "seq16", 32),
        ("vit", "embeddings.patch_embeddings.projection:out:0", "grid4x4", 32),
        ("albert", "encoder.albert_layer_groups.0.albert_layers.0:out:5", "tokens", 32),
    ],
)
def test_spaces_of_transformers(family, site, space, width):
    info = next(info for info in infos_of(family) if str(info.site) == site)
    assert (info.space, info.width, info.refusal) == (space, width, "")


def test_order_is_that_of_the_forward(bert):
    names = [str(info.site) for info in bert if info.usable and not info.site.element]
    blocks = [f"encoder.layer.{layer}:{side}:0" for layer in range(LAYERS) for side in ("in", "out")]
    assert [name for name in names if name in blocks] == blocks
    assert names.index("encoder.layer.0:in:0") < names.index("encoder.layer.0.output:out:0")


def test_calls_elements_and_refusals_are_listed(branches):
    listed = {str(info.site): info.refusal for info in branches}
    assert listed["shared:out:1"] == ""
    assert listed["many:in:0"] == ""
    assert listed["many:out:0"] == ""
    assert listed["many:out:0#rest.1"] == ""
    assert listed["idle:out:0"] == "the forward never calls it"
    assert listed["flag:in:0"] == "it holds no floating-point numbers"


def test_rows_that_depend_on_the_data_are_refused():
    class Positive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, x[0] > 0]

    batch, other = Batch({"": torch.tensor([[1.0, 2.0], [1, 1]])}), Batch({"": torch.tensor([[1.0, -2.0]])})
    infos = list_sites(wrap(Positive()), batch, other)
    with pytest.raises(ModelError, match=r"depends on the data; its shape is \(2, 2\).*\(1, 1\)"):
        resolve([""], infos)


def test_calls_that_depend_on_the_data_are_refused():
    class Loops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(len(x)):
                x = self.layer(x)
            return x

    infos = list_sites(wrap(Loops()), Batch({"": torch.randn(3, 2)}))
    assert found(["layer:out:*"], infos) == ["layer:out:0", "layer:out:1"]
    with pytest.raises(ModelError, match="whether it is reached depends on the data"):
        resolve(["layer:out:2"], infos)


def test_attention_maps_and_positions_are_refused(bert):
    with pytest.raises(
        ModelError, match=r"position_embeddings:out:0: its first axis does not count the samples"
    ):
        resolve(["embeddings.position_embeddings"], bert)
    eager = wrap(build("bert"))
    eager.module.set_attn_implementation("eager")
    infos = list_sites(eager, family_batch("bert"))
    with pytest.raises(ModelError, match="number of rows depends on the data"):
        resolve(["encoder.layer.0.attention.self#1"], infos)


BLOCKS = [f"encoder.layer.{layer}:out:0" for layer in range(LAYERS)]
DENSE = [
    f"encoder.layer.{layer}.{part}output.dense:out:0"
    for layer in range(LAYERS)
    for part in ("attention.", "")
]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["encoder.layer.1"], ["encoder.layer.1:out:0"]),
        (["encoder.layer.1:in"], ["encoder.layer.1:in:0"]),
        (["encoder.layer.1:out:0"], ["encoder.layer.1:out:0"]),
        (["encoder.layer.*"], BLOCKS),
        (["**.output.dense"], DENSE),
        (["encoder.layer.?.output"], [f"encoder.layer.{layer}.output:out:0" for layer in range(LAYERS)]),
        (["**.pooler", "pooler"], ["pooler:out:0"]),
        (["pooler", "encoder.layer.0", "encoder.layer.*:out:*"], [*BLOCKS, "pooler:out:0"]),
        ([""], [":out:0"]),
        (["#pooler_output"], [":out:0#pooler_output"]),
        (["encoder#last_hidden_state"], ["encoder:out:0"]),
        (["encoder.layer.0:in#0"], ["encoder.layer.0:in:0"]),
        (["residual", "encoder.layer.0"], BLOCKS),
    ],
)
def test_patterns(patterns, expected, bert):
    assert found(patterns, bert) == expected


def test_a_star_stays_inside_one_part(bert):
    with pytest.raises(ModelError, match="never calls it"):
        resolve(["encoder.*"], bert)


def test_double_star_is_every_usable_output_of_a_first_call(bert):
    expected = {
        str(info.site)
        for info in bert
        if info.usable and info.site.side == "out" and info.site.call == 0 and not info.site.element
    }
    assert set(found(["**"], bert)) == expected
    assert ":out:0" in expected


def test_all_calls(branches):
    assert found(["shared:out:*", "shared:in:1"], branches) == ["shared:out:0", "shared:in:1", "shared:out:1"]
    assert found(["many#rest.0", "many"], branches) == ["many:out:0", "many:out:0#rest.0"]


def test_pooling_puts_everything_into_one_space(bert):
    layouts = resolve(["residual", "pooler"], bert, pooling="mean")
    assert [(layout.space, layout.tokens) for layout in layouts] == [("sample", True)] * LAYERS + [
        ("sample", False)
    ]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("encoder.layer.9", r"no site 'encoder\.layer\.9'; nearest: encoder\.layer"),
        ("encoder.layers.1", r"nearest: .*encoder\.layer\.1"),
        ("blocks.7.hook_resid_post", r"nearest: .*blocks\.[0-2]\.hook_resid_post"),
        ("blocks.0.hook_resid_mid", r"nearest: .*hook_resid"),
        ("transformer.h.*", r"the glob 'transformer\.h\.\*' matches no module"),
        ("encoder.layer.0:out:4", r"is not reached; these are: encoder\.layer\.0:out:0"),
        ("encoder.layer.0#7", r"is not reached; these are: .*encoder\.layer\.0"),
        ("encoder.layer.0:middle", "is not of the form"),
        ("encoder.layer.0:out:first", "is not of the form"),
        ("a:out:0:1", "is not of the form"),
    ],
)
def test_unknown_names(pattern, message, bert):
    with pytest.raises(UnknownNameError, match=message):
        resolve(["residual", pattern], bert)


def test_what_a_glob_cannot_capture_is_left_out_and_alone_refused(bert):
    assert found(["embeddings.*_embeddings"], bert) == [
        "embeddings.word_embeddings:out:0",
        "embeddings.token_type_embeddings:out:0",
    ]
    with pytest.raises(ModelError, match="does not count the samples"):
        resolve(["embeddings.pos*"], bert)


def test_untrained_parts_are_refused():
    infos = list_sites(wrap(build("bert"), untrained=("pooler.dense.weight",)), family_batch("bert"))
    with pytest.raises(ModelError, match="its weights are not in the checkpoint"):
        resolve(["pooler.dense"], infos)
    with pytest.raises(ModelError, match="its weights are not in the checkpoint"):
        resolve(["pooler"], infos)
    assert found(["encoder.layer.0"], infos) == ["encoder.layer.0:out:0"]


@pytest.mark.parametrize("lengths", [[5], [1], [1, 1], [4, 7, 7]])
def test_one_batch_is_enough_for_a_dry_run(lengths):
    batch = text_batch(lengths, positions=True)
    other = cut(batch)
    assert other.mask.shape[0] != batch.mask.shape[0]
    assert other.mask.shape[1] != batch.mask.shape[1]
    infos = list_sites(wrap(build("gpt2")), batch)
    assert [layout.space for layout in resolve(["residual"], infos)] == ["tokens"] * LAYERS


def test_equal_batches_are_refused():
    batch = text_batch([3, 4])
    with pytest.raises(ModelError, match="differing samples and lengths"):
        list_sites(wrap(build("gpt2")), batch, batch)


def test_a_dry_run_leaves_no_trace():
    module = conv_net().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    random_state = torch.get_rng_state()
    list_sites(wrap(module), images(3))
    assert all(part.training for part in module.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("h.[0-2].mlp", ["h.0.mlp", "h.2.mlp"]),
        ("h.[!0-2].mlp", ["h.3.mlp"]),
        ("h.1[0-9].mlp", ["h.10.mlp", "h.11.mlp"]),
        ("h.{0,11}.mlp", ["h.0.mlp", "h.11.mlp"]),
        ("h.{[0-2],1[01]}.{mlp,attn}", ["h.0.mlp", "h.2.mlp", "h.10.mlp", "h.11.mlp", "h.2.attn"]),
        ("{**.attn,h.3.*}", ["h.3.mlp", "h.2.attn"]),
        ("h[.]0[!a]mlp", []),
        ("h,0", ["h,0"]),
        ("h[,&&|~]0", ["h,0"]),
    ],
)
def test_globs_choose_characters_and_words(pattern: str, names: list[str]) -> None:
    every = ["h.0.mlp", "h.2.mlp", "h.3.mlp", "h.10.mlp", "h.11.mlp", "h.2.attn", "h,0", "h,0.x"]
    assert [name for name in every if glob(pattern).fullmatch(name)] == names


@pytest.mark.parametrize("pattern", ["h.{0,1", "h.0}", "h.[9-0]"])
def test_globs_that_cannot_be_read_are_refused(pattern: str) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        glob(pattern)
