"""TransformerLens names point at the right modules of the installed transformers, with and without a head."""

import pytest

from schemas.layout import Site
from tasks.extract.aliases import alias_table, looks_like_alias
from tasks.extract.models import wrap
from tasks.extract.sites import list_sites, resolve
from tests.extract.nets import LAYERS, build, conv_net, family_batch, images

ALBERT = "encoder.albert_layer_groups.0.albert_layers.0"

EXPECTED = {
    "bert": ("encoder.layer.1", "attention.output.dense", "output.dense", "embeddings.word_embeddings", None),
    "gpt2": ("h.1", "attn", "mlp", "wte", "ln_f"),
    "llama": ("layers.1", "self_attn", "mlp", "embed_tokens", "norm"),
    "vit": ("layers.1", "attention", "mlp", "embeddings.patch_embeddings", "layernorm"),
    "albert": (ALBERT, "attention.dense", "ffn_output", "embeddings.word_embeddings", None),
}

PREFIX = {"bert": "bert.", "gpt2": "transformer.", "llama": "model.", "vit": "vit.", "albert": "albert."}


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("family", EXPECTED)
def test_names_of_every_family(family, head):
    infos = list_sites(wrap(build(family, head=head)), family_batch(family))
    block, attention, mlp, embed, norm = EXPECTED[family]
    prefix = PREFIX[family] if head else ""
    call = 1 if family == "albert" else 0

    def site(name: str) -> str:
        return str(resolve([name], infos)[0].site)

    assert site("blocks.1.hook_resid_pre") == f"{prefix}{block}:in:{call}"
    assert site("blocks.1.hook_resid_post") == f"{prefix}{block}:out:{call}"
    assert site("blocks.1.hook_attn_out") == f"{prefix}{block}.{attention}:out:{call}"
    assert site("blocks.1.hook_mlp_out") == f"{prefix}{block}.{mlp}:out:{call}"
    assert site("hook_embed") == f"{prefix}{embed}:out:0"
    assert ("ln_final.hook_normalized" in alias_table([info.site for info in infos])) == (norm is not None)
    if norm is not None:
        assert site("ln_final.hook_normalized") == f"{prefix}{norm}:out:0"


@pytest.mark.parametrize("family", EXPECTED)
def test_short_names_are_all_blocks(family):
    infos = list_sites(wrap(build(family)), family_batch(family))
    count = 6 if family == "albert" else LAYERS
    for short, long in (("residual", "resid_post"), ("attention", "attn_out"), ("mlp", "mlp_out")):
        layouts = resolve([short], infos)
        assert len(layouts) == count
        assert layouts == resolve([f"blocks.*.hook_{long}"], infos)
        assert layouts == resolve([f"blocks.{n}.hook_{long}" for n in reversed(range(count))], infos)


def test_other_networks_have_no_aliases():
    infos = list_sites(wrap(conv_net()), images(3))
    assert alias_table([info.site for info in infos]) == {}


def test_a_module_of_that_name_comes_first():
    sites = [Site(module="mlp")]
    assert alias_table(sites) == {}
    assert looks_like_alias("mlp")
    assert looks_like_alias("blocks.0.hook_resid_pre")
    assert not looks_like_alias("encoder.layer.0")
