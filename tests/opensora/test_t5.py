"""Captions become token embeddings: cleaned, padded, cut with a warning, and trainable."""
import importlib.util
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchrun import load_results, torchrun
from transformers import AutoTokenizer, T5Config, T5EncoderModel

from opensora.models.text_encoder import shardformer
from opensora.models.text_encoder.t5 import T5Encoder
from opensora.models.text_encoder.word_tokenizer import build_word_tokenizer
from opensora.parallel import collectives
from opensora.registry import MODELS

WORDS = ["a", "red", "blue", "circle", "square", "moves", "left", "."]  # ids 3 ... 10


def tiny_model(d_model: int = 16) -> T5EncoderModel:
    torch.manual_seed(0)
    return T5EncoderModel(T5Config(
        vocab_size=3 + len(WORDS), d_model=d_model, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("t5")
    T5Encoder.from_parts(tiny_model(), build_word_tokenizer(WORDS), 10).save_pretrained(path)
    return str(path)


def load(folder: str, **kwargs) -> T5Encoder:
    return T5Encoder(**{"from_pretrained": folder, "model_max_length": 8, "device": "cpu"} | kwargs)


def test_in_fp16_the_layers_that_would_overflow_stay_in_fp32(folder):
    encoder = load(folder, dtype=torch.float16)
    last = [p for name, p in encoder.model.named_parameters() if name.endswith("wo.weight")]
    assert {p.dtype for p in last} == {torch.float32}
    assert encoder.encode(["a red circle"])["y"].isfinite().all()
    assert {p.dtype for p in load(folder, dtype=torch.bfloat16).model.parameters()} == {torch.bfloat16}


def test_words_get_ids_in_their_order_after_the_special_ones():
    tokenizer = build_word_tokenizer(WORDS)
    assert tokenizer("A RED  circle.")["input_ids"] == [3, 4, 6, 10, 1]
    assert tokenizer("a green circle")["input_ids"] == [3, 2, 6, 1]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)


def test_a_tokenizer_comes_back_from_its_folder(folder):
    again = AutoTokenizer.from_pretrained(folder)
    assert again(["a blue square", "left"], padding=True)["input_ids"] == [[3, 5, 7, 1], [9, 1, 0, 0]]


@pytest.mark.parametrize("words", [[], ["Red"], ["two words"], ["red."], [""]])
def test_words_that_no_caption_can_yield_are_refused(words):
    with pytest.raises(ValueError, match="words="):
        build_word_tokenizer(words)


def test_config_name_builds_it(folder):
    encoder = MODELS.build({"type": "t5", "from_pretrained": folder, "model_max_length": 8, "device": "cpu"})
    assert isinstance(encoder, T5Encoder) and encoder.output_dim == 16 and encoder.model_max_length == 8


def test_encode_gives_what_the_transformer_takes(folder):
    out = load(folder).encode(["a red circle", "a blue square moves left ."])
    assert out["y"].shape == (2, 1, 8, 16) and not out["y"].requires_grad
    assert out["mask"].tolist() == [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0]]


def test_padding_does_not_change_a_caption(folder):
    short, long = load(folder, model_max_length=4), load(folder, model_max_length=8)
    caption = ["a red circle"]
    torch.testing.assert_close(short.encode(caption)["y"], long.encode(caption)["y"][:, :, :4])


def test_captions_are_cleaned_as_in_training_unless_switched_off(folder):
    ids, _ = load(folder).tokenize(["(Red)+<b>circle</b> www.example.com/x"])
    assert ids[0].tolist() == [4, 6, 1, 0, 0, 0, 0, 0]
    ids, _ = load(folder, clean_caption=False).tokenize(["red (circle)"])
    assert ids[0].tolist() == [4, 2, 6, 2, 1, 0, 0, 0]


def test_an_over_long_caption_is_cut_with_a_warning(folder, caplog):
    encoder = load(folder, model_max_length=5)
    with caplog.at_level(logging.WARNING):
        ids, mask = encoder.tokenize(["a red circle moves left .", "a red circle ."])
    assert ids.tolist() == [[3, 4, 6, 8, 1], [3, 4, 6, 10, 1]] and mask.all()
    (message,) = [r.getMessage() for r in caplog.records]
    assert "'a red circle moves left .'" in message and "7 tokens" in message and "first 5" in message


def test_a_caption_that_just_fits_warns_of_nothing(folder, caplog):
    with caplog.at_level(logging.WARNING):
        load(folder, model_max_length=5).tokenize(["a red circle ."])
    assert not caplog.records


def test_training_gets_gradients_and_sampling_does_not(folder):
    encoder = load(folder)
    ids, mask = encoder.tokenize(["a red circle"])
    encoder.embed(ids, mask).sum().backward()
    assert all(p.grad is not None for p in encoder.model.encoder.block.parameters())
    assert not encoder.encode(["a red circle"])["y"].requires_grad


def test_weights_come_in_the_dtype_asked_for(folder):
    encoder = load(folder, dtype=torch.bfloat16)
    assert encoder.dtype == torch.bfloat16
    assert {p.dtype for p in encoder.model.parameters()} == {torch.bfloat16}
    assert encoder.encode(["a red circle"])["y"].dtype == torch.bfloat16


def test_null_is_the_transformers_and_stays_there(folder):
    encoder = load(folder)
    with pytest.raises(RuntimeError, match="y_embedder"):
        encoder.null(2)
    encoder.y_embedder = nn.Module()
    encoder.y_embedder.y_embedding = nn.Parameter(torch.arange(12.0).view(3, 4))
    null = encoder.to("cpu").null(2)
    assert null.shape == (2, 1, 3, 4)
    assert torch.equal(null[1, 0], torch.arange(12.0).view(3, 4))


def test_device_follows_a_move(folder):
    encoder = load(folder)
    assert encoder.device == torch.device("cpu")
    assert encoder.to("meta").device == torch.device("meta")


@pytest.mark.parametrize("source", [None, "", "./nowhere", "/no/such/folder", "a/b/c"])
def test_a_missing_folder_is_one_line_with_key_and_value(source):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load(source)
    assert f"text_encoder.from_pretrained={source!r}" in str(error.value)
    assert "local folder" in str(error.value) and "\n" not in str(error.value)


def test_a_hub_id_that_cannot_be_had_is_one_line():
    with pytest.raises(FileNotFoundError) as error:
        load("nobody/no-such-t5", local_files_only=True)
    message = str(error.value)
    assert "text_encoder.from_pretrained='nobody/no-such-t5'" in message and "\n" not in message


def test_a_folder_without_weights_or_config_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load(str(tmp_path))
    build_word_tokenizer(WORDS).save_pretrained(tmp_path)
    tiny_model().config.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="could not be loaded"):
        load(str(tmp_path))


def test_weights_of_another_size_or_number_are_refused(folder, tmp_path):
    build_word_tokenizer(WORDS).save_pretrained(tmp_path)
    model = tiny_model()
    state = {k: v for k, v in model.state_dict().items() if ".block.1." not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"lacks \d+ weights.*block\.1\."):
        load(str(tmp_path))
    tiny_model(d_model=24).save_pretrained(tmp_path)
    tiny_model(d_model=16).config.save_pretrained(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=r"text_encoder\.from_pretrained") as error:
        load(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none_is_refused(folder):
    with pytest.raises(ValueError, match="device='cuda'.*not available"):
        load(folder, device="cuda")


@pytest.fixture
def other_ranks(monkeypatch) -> list[int]:
    """How many of them have no package, and how many fail at it; without a word, none."""
    votes: list[int] = []
    monkeypatch.setattr(shardformer, "total",
                        lambda own, ranks, device: own + (votes.pop(0) if votes else 0))
    return votes


@pytest.mark.skipif(importlib.util.find_spec("colossalai") is not None, reason="colossalai is here")
@pytest.mark.parametrize("asked, ranks", [(True, None), (True, "ranks"), (None, "ranks"), (False, "ranks")])
def test_without_colossalai_all_weights_are_here_which_is_said_where_they_were_not_to_be(
        folder, other_ranks, caplog, asked, ranks):
    encoder = load(folder, shardformer=asked, ranks=ranks)
    assert encoder.ranks is None and type(encoder.model) is T5EncoderModel
    said = [record.message for record in caplog.records]
    assert len(said) == bool(asked)
    assert all("shardformer=True" in line and "No module named 'colossalai'" in line for line in said)


def test_a_sharded_encoder_gives_what_a_whole_one_gives(folder):
    """On two ranks, each with half of the weights of every layer."""
    pytest.importorskip("colossalai", reason="needs colossalai; constraints/colossalai.txt tells how")
    torchrun(2, Path(__file__).with_name("t5_on_ranks.py"), folder)
    whole = load(folder)
    expected = whole.encode(["a red circle", "a blue square moves left ."])["y"]
    for rank in load_results(Path(folder), 2):
        torch.testing.assert_close(rank["y"], expected)
        assert rank["weights"] < 0.75 * sum(p.numel() for p in whole.model.parameters())


@pytest.fixture
def colossalai(monkeypatch, other_ranks) -> dict:
    """A stand-in, for it cannot be installed beside this torch: what it was asked for."""
    solutions = {"of": "some ranks"}
    asked = {"solutions": solutions}

    class ShardFormer:
        def __init__(self, shard_config: dict) -> None:
            asked.update(shard_config)

        def optimize(self, model, policy):
            asked["split"] = {layer.suffix: layer.target_module
                              for part in policy.module_policy().values()
                              for layer in part.sub_module_replacement}
            return model, None

    class T5EncoderPolicy:
        """As that of version 0.5.0."""

        def module_policy(self) -> dict:
            parts = [("wi_0 ", "outputs"), ("wi_1", "inputs"), ("wo", "outputs"), ("dropout", "parallel")]
            return {"T5DenseGatedActDense": SimpleNamespace(sub_module_replacement=[
                SimpleNamespace(suffix=suffix, target_module=split, kwargs={}) for suffix, split in parts])}

    for name, content in {
        "": {}, ".shardformer": {"ShardConfig": dict, "ShardFormer": ShardFormer},
        ".shardformer.layer.utils": {"Randomizer": SimpleNamespace(reset_index=lambda: None)},
        ".shardformer.layer": {"Linear1D_Col": "outputs", "Linear1D_Row": "inputs"},
        ".tensor": {}, ".tensor.d_tensor": {},
        ".tensor.d_tensor.layout_converter": {
            "LayoutConverter": lambda: SimpleNamespace(cached_solution=solutions)},
        ".shardformer.policies": {}, ".shardformer.policies.t5": {"T5EncoderPolicy": T5EncoderPolicy},
    }.items():
        monkeypatch.setitem(sys.modules, f"colossalai{name}", SimpleNamespace(**content))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "colossalai")
    return asked


@pytest.mark.parametrize("asked, ranks", [(True, None), (True, "ranks"), (None, "ranks")])
def test_shardformer_splits_the_gated_mlp_where_colossalai_fails_to(folder, colossalai, asked, ranks):
    encoder = load(folder, shardformer=asked, ranks=ranks)
    assert encoder.ranks == ranks
    assert colossalai == {"solutions": {}, "enable_jit_fused": True,
                          "enable_tensor_parallelism": ranks is not None,
                          "tensor_parallel_process_group": ranks, "split": {
                              "wi_0": "outputs", "wi_1": "outputs", "wo": "inputs", "dropout": "parallel"}}
    one, other = (each.encode(["a red circle"])["y"] for each in (encoder, load(folder)))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("votes, reason", [
    ([1], "another rank has none"), ([0, 2], "it fails on another rank")])
def test_where_another_rank_cannot_all_have_all_weights(folder, colossalai, other_ranks, caplog, votes,
                                                        reason):
    other_ranks += votes
    encoder = load(folder, ranks="ranks")
    assert encoder.ranks is None and not other_ranks
    assert [reason in record.message for record in caplog.records] == [True]
    one, other = (each.encode(["a red circle"])["y"] for each in (encoder, load(folder)))
    assert torch.equal(one, other)


def test_where_it_fails_here_the_others_hear_of_it_and_nothing_of_the_ranks_is_kept(
        folder, colossalai, other_ranks, caplog, monkeypatch):
    def fails(self) -> None:
        raise RuntimeError("no such layer")

    package = sys.modules["colossalai.shardformer.policies.t5"]
    monkeypatch.setattr(package.T5EncoderPolicy, "module_policy", fails)
    assert load(folder, ranks="ranks").ranks is None
    assert "RuntimeError: no such layer" in caplog.text
    assert colossalai["solutions"] == {}


@pytest.mark.parametrize("asked, ranks", [(None, None), (False, "ranks")])
def test_where_it_is_not_wanted_colossalai_is_left_alone(folder, colossalai, asked, ranks):
    assert load(folder, shardformer=asked, ranks=ranks).ranks is None and colossalai.keys() == {"solutions"}


def test_an_encoder_that_ranks_hold_together_is_left_and_joined_anew(folder, colossalai):
    """Its calls count among the collectives, for a rank may fail amid them."""
    encoder, begun = load(folder, ranks="the first ranks"), collectives.begun
    expected = encoder.encode(["a red circle"])["y"]
    assert (encoder.ranks, collectives.begun) == ("the first ranks", begun + 1)
    encoder.leave()
    assert encoder.ranks is None and encoder.model is None
    encoder.join("other ranks")
    assert encoder.ranks == colossalai["tensor_parallel_process_group"] == "other ranks"
    with pytest.raises(RuntimeError, match="several ranks hold the text encoder's weights together"):
        encoder.save_pretrained(folder)
    assert torch.equal(encoder.encode(["a red circle"])["y"], expected)


def test_bad_arguments_are_refused(folder):
    with pytest.raises(ValueError, match="model_max_length=0"):
        load(folder, model_max_length=0)
    with pytest.raises(TypeError, match="list of captions"):
        load(folder).encode("a red circle")
