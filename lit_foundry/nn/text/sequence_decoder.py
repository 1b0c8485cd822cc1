"""Decoders that write a text from what an encoder of the same family made of another.

Shapes: B batch, T tokens, S tokens of the text that is written, D feature width, V vocabulary.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_foundry.nn.text.encoder import TextEncoder
from lit_foundry.nn.text.generation import end_of
from lit_foundry.nn.text.language_head import LanguageHead
from lit_foundry.nn.text.network import LanguageNetwork
from lit_foundry.nn.text.probe import reason
from lit_foundry.nn.transformers_config import OFFLINE, quiet
from lit_foundry.sources import from_hub, resolve

TOLERANCE = 1e-5  # of the largest logit


class SequenceDecoder(nn.Module):
    """The decoder of a family of encoder-decoders of ``transformers``.

    It has no embedding of its own: that lies in the encoder alone.

    Args:
        stack: Its layers.
    """

    def __init__(self, stack: Any) -> None:
        super().__init__()
        self.stack = stack
        stack.embed_tokens = nn.Identity()

    @property
    def layers(self) -> nn.ModuleList:
        """Its layers."""
        lists = [m for m in self.stack.modules() if isinstance(m, nn.ModuleList)]
        return max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))

    def forward(
        self, input_ids: Tensor, embedding: nn.Module, states: Tensor, attention_mask: Tensor
    ) -> Tensor:
        """Compute features (B, S, D) of the tokens written so far.

        Args:
            input_ids: Those, one place later, padded on the right, shape (B, S).
            embedding: That of the encoder.
            states: What the encoder made of the text that it saw, shape (B, T, D).
            attention_mask: True at that text's real tokens, shape (B, T).
        """
        output = self.stack(
            inputs_embeds=embedding(input_ids),
            encoder_hidden_states=states,
            encoder_attention_mask=attention_mask.long(),
            use_cache=False,
        )
        features: Tensor = output.last_hidden_state
        return features


def decoder_of(backbone: TextEncoder) -> tuple[SequenceDecoder, LanguageHead]:
    """Build decoder and output layer of the encoder's family, or take over pretrained ones.

    Raises:
        ValueError: If the family has none, or computes logits otherwise.
    """
    from transformers import AutoModelForSeq2SeqLM

    config: Any = copy.deepcopy(backbone.encoder.config)
    kind = f"model.backbone.config.model_type {config.model_type}"
    if not config.is_encoder_decoder:
        raise ValueError(f"{kind} has no decoder: take one such as bart, mbart or pegasus.")
    options: dict[str, Any] = {"trust_remote_code": False}
    if backbone.pretrained is None:
        model = AutoModelForSeq2SeqLM.from_config(config, **options)
    else:
        path = resolve(backbone.pretrained)
        options |= {"dtype": torch.float32, "output_loading_info": True}
        with from_hub(path, OFFLINE), quiet():
            model, info = AutoModelForSeq2SeqLM.from_pretrained(path, config=config, **options)
        if lost := sorted(key for key in info["missing_keys"] if ".decoder." in f".{key}"):
            raise ValueError(
                f"model.backbone.pretrained {backbone.pretrained} lacks {len(lost)} weights of the "
                f"decoder, such as {lost[0]}: name weights that have it, or leave it out."
            )
    model.eval()
    pad = config.pad_token_id or 0
    ids = (torch.arange(12).view(2, 6) + 1 + pad) % backbone.vocab_size
    mask = torch.ones_like(ids)
    before = F.pad(ids.flip(0), (0, 1), value=pad)  # of which M2M100 counts positions
    with torch.no_grad():
        told = model(input_ids=ids, attention_mask=mask, decoder_input_ids=before).logits
    encoder, output = model.get_encoder(), model.get_output_embeddings()
    embedding = encoder.get_input_embeddings()
    if model.get_decoder().get_input_embeddings().weight is not embedding.weight:
        raise ValueError(
            f"{kind} has an embedding for its decoder alone here, which is not built: set "
            "model.backbone.config.tie_word_embeddings (or share_encoder_decoder_embeddings, of "
            "marian) to true."
        )
    if output.weight is not embedding.weight:
        raise ValueError(
            f"{kind} has output weights other than its embeddings here, which are not built: take "
            "one such as bart, mbart or pegasus."
        )
    bias = getattr(model, "final_logits_bias", output.bias)
    head = LanguageHead(
        nn.Identity(),
        None if bias is None else nn.Parameter(bias.detach().flatten().clone()),
        None,
    )
    try:
        decoder = SequenceDecoder(model.get_decoder())
        with torch.no_grad():
            states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            written = decoder(before, embedding, states, mask)
            found = F.linear(written, embedding.weight, head.bias)
            worst = float((found - told).abs().max() / told.abs().max())
    except Exception as error:  # of a decoder that is called otherwise
        raise ValueError(f"{kind} is not decoded so ({reason(error)}): take bart.") from error
    if not worst <= TOLERANCE:
        raise ValueError(
            f"{kind} makes logits otherwise than from the features of its decoder alone (they "
            f"differ by {worst:.0e}): take one such as bart, mbart or pegasus."
        )
    decoder.train()
    return decoder, head


def sequence_model(
    backbone: TextEncoder, decoder: SequenceDecoder, head: LanguageHead, exactly: bool = True
) -> Any:
    """Build the ``AutoModelForSeq2SeqLM`` with the same logits.

    Args:
        backbone: Encoder, whose weights are copied.
        decoder: Decoder of its family.
        head: Output layer.
        exactly: Whether its config has to describe it, so that it can be saved.

    Raises:
        ValueError: If no config describes it.
    """
    from transformers import AutoModelForSeq2SeqLM

    config: Any = copy.deepcopy(backbone.encoder.config)
    config.use_cache = True
    model = AutoModelForSeq2SeqLM.from_config(config, trust_remote_code=False)
    embedding = backbone.encoder.get_input_embeddings().weight
    written = {**decoder.stack.state_dict(), "embed_tokens.weight": embedding}
    model.get_decoder().load_state_dict(written)
    encoder = model.get_encoder()
    try:
        encoder.load_state_dict(backbone.encoder.state_dict())
    except RuntimeError as error:
        if exactly:
            raise ValueError(
                f"No config of transformers describes this {config.model_type}, whose layers were "
                "made smaller: fine-tune from its checkpoint, or export one from before."
            ) from error
        [name] = [name for name, module in model.named_modules() if module is encoder]
        model.set_submodule(name, copy.deepcopy(backbone.encoder).float())
    with torch.no_grad():
        output = model.get_output_embeddings()
        output.weight.copy_(head.decoder_weight(backbone))
        if head.bias is not None:
            bias = getattr(model, "final_logits_bias", output.bias)
            bias.copy_(head.bias.view_as(bias))
    return model.eval()


def start_of(backbone: TextEncoder, tokenizer: Any) -> int:
    """Return the id that a decoder begins with: as pretrained, else that which ends a text."""
    pretrained = backbone.recipe()["init_args"].get("pretrained")
    config: Any = backbone.encoder.config
    start = config.decoder_start_token_id if pretrained else None
    return int(end_of(tokenizer) or 0) if start is None else int(start)


class SequenceNetwork(LanguageNetwork):
    """Encoder, decoder and head as a function of a text and of what is written of it so far.

    Args:
        backbone: Encoder.
        decoder: Its family's decoder.
        head: Output layer.
        vocab_size: Number of token ids V.
    """

    def __init__(
        self,
        backbone: TextEncoder,
        decoder: SequenceDecoder,
        head: LanguageHead,
        vocab_size: int,
    ) -> None:
        super().__init__(backbone, head, vocab_size)
        self.module = _Written(backbone, decoder, head)
        self.inputs = (*self.inputs, "decoder_input_ids")

    def example(self, rows: int, size: int) -> tuple[Tensor, ...]:
        """Return texts, of which each writes another."""
        batch = self._example(rows, size)
        batch = {**batch, "decoder_input_ids": batch["input_ids"].flip(0)}
        return tuple(batch[name].long() for name in self.inputs)

    def save_transformers(self, folder: Path, labels: Sequence[str]) -> None:
        """Write the model of ``AutoModelForSeq2SeqLM``."""
        parts: Any = self.module
        sequence_model(parts.backbone, parts.decoder, parts.head).save_pretrained(folder)

    def special(self, tokenizer: Any) -> dict[str, int | None]:
        """Return the ids of a config, with that which the decoder begins with."""
        parts: Any = self.module
        own = {"eos_token_id": end_of(tokenizer)}
        own["decoder_start_token_id"] = start_of(parts.backbone, tokenizer)
        forced = dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"))
        return super().special(tokenizer) | own | forced


class _Written(nn.Module):
    def __init__(self, backbone: TextEncoder, decoder: SequenceDecoder, head: LanguageHead) -> None:
        super().__init__()
        self.backbone, self.decoder, self.head = backbone, decoder, head

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return (B, S, V) logits."""
        states = self.backbone.encode(batch).tokens
        embedding = self.backbone.encoder.get_input_embeddings()
        ids, mask = batch["decoder_input_ids"], batch["attention_mask"]
        tokens = self.decoder(ids, embedding, states, mask)
        logits: Tensor = self.head(tokens, self.head.decoder_weight(self.backbone))
        return logits
