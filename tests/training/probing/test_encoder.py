"""Features are those of an evaluation, whatever else is in the batch."""

from typing import Any

import numpy as np
import pytest
import torch

from lit_foundry.nn import ResNet9, TextDecoder, TextEncoder
from lit_foundry.nn.image.augment import Augment
from lit_foundry.tasks import CausalLM, Classification, MaskedLM
from lit_foundry.training.probing.encoder import (
    Encoder,
    batches_of,
    check_finite,
    evaluating,
    loader_of,
)

BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
GPT = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}


def texts(dropout: float = 0.5) -> MaskedLM:
    return MaskedLM(TextEncoder(config=BERT, vocab_size=40, dropout=dropout))


def images(**options: Any) -> Classification:
    return Classification(ResNet9(width=4, in_channels=1, mean=[0.3], std=[0.4]), 2, **options)


def batch_of_texts() -> dict[str, torch.Tensor]:
    ids = torch.arange(1, 13).view(2, 6)
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    return {"input_ids": ids, "attention_mask": mask}


def pixels(rows: int, size: int = 8) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(rows)
    values = torch.randint(256, (rows, 1, size, size), generator=random, dtype=torch.uint8)
    return {"pixel_values": values, "index": torch.arange(rows)}


def test_batchnorm_neither_sees_nor_keeps_the_batch_of_a_training_network() -> None:
    task = images().train()
    batch, before = pixels(6), {k: v.clone() for k, v in task.state_dict().items()}
    whole = Encoder(task)(batch)
    alone = Encoder(task)({"pixel_values": batch["pixel_values"][:1]})
    assert torch.allclose(whole[:1], alone, atol=1e-5)  # the batch's statistics would differ
    assert all(torch.equal(before[k], v) for k, v in task.state_dict().items())
    assert task.backbone.training
    assert torch.allclose(whole, task.backbone.eval().encode(batch).pooled)


def test_dropout_is_off() -> None:
    encode = Encoder(texts().train())
    assert torch.equal(encode(batch_of_texts()), encode(batch_of_texts()))


def test_modes_that_differ_are_put_back() -> None:
    task = images().train()
    task.backbone.stages[0].eval()
    before = [m.training for m in task.modules()]
    with pytest.raises(ZeroDivisionError), evaluating(task):  # noqa: PT012
        assert not any(m.training for m in task.modules())
        raise ZeroDivisionError
    assert [m.training for m in task.modules()] == before


def test_mean_leaves_padding_out() -> None:
    task, batch = texts(), batch_of_texts()
    short = {k: v[1:, :3] for k, v in batch.items()}
    whole = Encoder(task, "mean")(batch)
    assert torch.allclose(whole[1:], Encoder(task, "mean")(short), atol=1e-5)
    tokens = task.backbone.eval().encode(short).tokens
    assert torch.allclose(whole[1:], tokens.mean(1), atol=1e-5)
    assert torch.allclose(Encoder(task, "first")(short), tokens[:, 0], atol=1e-5)


def test_images_are_cut_as_in_an_evaluation_and_seen_once() -> None:
    task = images(augment=Augment(size=8), tta="flip")
    batch = pixels(3, size=12)
    inner = {"pixel_values": batch["pixel_values"][..., 2:10, 2:10]}
    expected = task.backbone.eval().encode(inner).pooled
    assert torch.allclose(Encoder(task)(batch), expected, atol=1e-6)


def test_first_is_refused_where_it_says_nothing() -> None:
    causal = CausalLM(TextDecoder(config=GPT, vocab_size=40))
    for task in (causal, images()):
        with pytest.raises(ValueError, match="first is for texts"):
            Encoder(task, "first")


def test_features_need_one_backbone() -> None:
    class Two(torch.nn.Module):
        backbones = {"one": 1, "two": 2}  # noqa: RUF012

    with pytest.raises(ValueError, match="has 2 backbones: one, two"):
        Encoder(Two())
    with pytest.raises(ValueError, match="has no backbones"):
        Encoder(torch.nn.Linear(1, 1))


def test_batches_hold_every_row_once_within_their_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 100)
    lengths[7] = 900
    found = batches_of(lengths, range(5, 95), most=8, tokens=120)
    assert sorted(row for rows in found for row in rows) == [*range(5, 95)]
    assert found[0] == [7]
    for rows in found[1:]:
        assert len(rows) <= 8
        assert lengths[rows].max() * len(rows) <= 120


def test_training_images_are_not_transformed_and_no_random_number_is_drawn() -> None:
    class Dataset:
        transform = abs

        def __getitem__(self, rows: Any) -> Any:
            return self.transform, rows

    before = torch.get_rng_state()
    dataset = Dataset()
    assert [*loader_of(dataset, [[1], [0]])] == [(None, [1]), (None, [0])]
    assert dataset.transform is abs
    assert torch.equal(before, torch.get_rng_state())


def test_what_is_not_finite_is_named() -> None:
    features = torch.zeros(4, 2)
    check_finite(features, "val")
    features[2, 1] = torch.inf
    with pytest.raises(ValueError, match=r"1 of 4 samples of val .* the first is number 2"):
        check_finite(features, "val")
