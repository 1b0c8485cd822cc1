"""Text encoders of ``transformers`` as backbones: from a hub, a folder, a package or a config.

Shapes: B batch, T tokens, D feature width.
"""

import copy
import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lit_foundry import ranges
from lit_foundry.nn.backbone import Backbone, is_restoring
from lit_foundry.nn.features import Features
from lit_foundry.nn.heads import FAMILY_LAYERS, DenseHead, EveryToken, LinearHead, family_options
from lit_foundry.nn.text import varlen
from lit_foundry.nn.text.building import build
from lit_foundry.nn.text.language_head import LanguageHead, build_head, is_known, weights_of
from lit_foundry.nn.text.packed_attention import check_isolation, isolated
from lit_foundry.nn.text.probe import probe
from lit_foundry.nn.transformers_config import (
    OFFLINE,
    check,
    is_decoder,
    plain_config,
    quiet,
    read_config,
    set_dropout,
)
from lit_foundry.sources import from_hub, resolve

# Keys of configs for the dropout before the tags; the first one that is there holds.
TAGGER_DROPOUT = "classifier_dropout", "classifier_dropout_prob", "hidden_dropout_prob", "dropout"


class TextEncoder(Backbone):
    """Any text encoder of ``transformers``, without its pooler, or a causal network as one.

    Of what has an encoder and a decoder (BART, T5) it is the former.

    Which those are is tried out: the network has to take tokens alone, and to give each text
    features of its own, whatever padding comes after it.

    Args:
        pretrained: Hub name, folder, or ``package:NAME/FOLDER``.
        config: Config of ``transformers`` with its ``model_type``; without ``pretrained``, builds
            from scratch; with it, overrides entries of the pretrained config.
        vocab_size: Number of token ids: the size of the embedding from scratch, checked against
            the weights when pretrained.
        pad_id: Id of padding from scratch, where the config has none; that of the data.
        pooling: ``first`` or ``last`` token, masked ``mean``, or as the family classifies
            (``default``); of causal networks that is the last token, and the first sees no text.
        dropout: Probability of all the encoder's dropouts; None keeps the config's.
        attention: Implementation; ``auto`` takes sdpa where the family supports it, and varlen for
            packed documents on a GPU (Ampere or later) in 16 bits, without dropout in attention.

    Attributes:
        pretrained: Where its weights are from; None from scratch, or from a checkpoint.
        vocab_size: Number of rows of the embedding.
        max_length: Longest sequence that the positions allow.
        pad_id: Id that the embedding takes for padding; some families count positions from it.
        is_causal: Whether no token sees those after it.
    """

    inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")
    optional_inputs: ClassVar[tuple[str, ...]] = (
        "token_type_ids",
        "position_ids",
        "document",
        "offsets",
    )

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        vocab_size: int | None = None,
        pad_id: int | None = None,
        pooling: Literal["default", "first", "mean", "last"] = "default",
        dropout: float | None = None,
        attention: Literal["auto", "sdpa", "eager"] = "auto",
    ) -> None:
        super().__init__()
        own = {"vocab_size": vocab_size, "pad_id": pad_id}
        rules = {
            "vocab_size": (vocab_size is None or vocab_size > 0, "is a number of tokens, or null"),
            "pad_id": (pad_id is None or pad_id >= 0, "is the id of a token, or null"),
        }
        ranges.check("model.backbone", own, rules)
        ranges.check_probs("model.backbone", dropout=dropout)
        built = read_config(pretrained, config or {})
        sized = hasattr(built, "vocab_size") and "vocab_size" not in (config or {})
        if vocab_size is not None and pretrained is None and sized:
            built.vocab_size = vocab_size
        if pad_id is not None and pretrained is None and "pad_token_id" not in (config or {}):
            built.pad_token_id = pad_id
        if dropout is not None:
            set_dropout(built, dropout)
        check(built, attention)
        if is_decoder(built) or built.is_encoder_decoder:
            built.use_cache = False  # nothing reads keys and values again in training
        options = {"attn_implementation": None if attention == "auto" else attention}
        weights = None if is_restoring() else pretrained
        self.encoder, self._pretrained_head = build(built, weights, pooling, options)
        self.pretrained = weights
        self._choose_attention, self._varlen = attention == "auto", False
        self._has_segments = getattr(built, "type_vocab_size", 0) > 1
        takes = inspect.signature(self.encoder.forward).parameters
        self._has_global = "global_attention_mask" in takes
        self.max_length, self._first_position = _positions(self.encoder)
        self.pad_id: int | None = getattr(built, "pad_token_id", None)
        found = probe(self.encoder, self._tokens, self.max_length)
        for p in found.idle:  # DDP would wait for it
            p.requires_grad_(False)
        self.vocab_size, self.dim = found.vocab_size, found.dim
        self.is_causal = found.causal
        self.pooling = _pooling(built, self.is_causal) if pooling == "default" else pooling
        if self.is_causal and pooling == "first":
            raise ValueError(
                f"model.backbone.pooling is first, but in a {built.model_type} the first token "
                "sees none after it, so that all texts would be alike: leave it out, or set it to "
                "last or mean."
            )
        family = built.model_type in FAMILY_LAYERS
        self._family_head = pooling == "default" and family and not self.is_causal
        if vocab_size is not None and vocab_size > self.vocab_size:
            raise ValueError(
                f"model.backbone.vocab_size is {vocab_size}, but the weights have only "
                f"{self.vocab_size} embeddings: set data.tokenizer to {pretrained}."
                if pretrained
                else f"model.backbone.config.vocab_size={self.vocab_size} is less than the "
                f"{vocab_size} tokens: raise it, or leave it out."
            )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        document: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> Features:
        """Compute features of (B, T) ids; the boolean mask is True at real tokens.

        Of rows that hold several documents, ``document`` numbers these from 1, with 0 at padding:
        then no token attends to another document. A faster kernel, if it serves, takes ``offsets``
        instead: where documents and padding begin in the rows joined, and the end, shape (N + 1,).
        """
        extra: dict[str, Any] = {"token_type_ids": token_type_ids} if self._has_segments else {}
        # Integers, as tokenizers yield them: some families of transformers compute 1 - mask.
        mask: Any = attention_mask.long()
        if document is not None:
            config: Any = self.encoder.config
            check_isolation(config)
            mask = isolated(config, document, self._score_dtype(input_ids.device), offsets)
        if position_ids is not None:
            extra["position_ids"] = position_ids + self._first_position
        tokens = self._tokens(input_ids, mask, **extra)
        return Features(tokens, self._pooled(tokens, attention_mask))

    def _tokens(self, input_ids: Tensor, mask: Any, **extra: Any) -> Tensor:
        if self._has_global:  # as Longformer classifies: the first token attends to all
            place = torch.arange(input_ids.shape[1], device=input_ids.device)
            extra["global_attention_mask"] = (place == 0).long().expand_as(input_ids)
        output = self.encoder(input_ids=input_ids, attention_mask=mask, **extra)
        tokens: Tensor = output.last_hidden_state
        return tokens

    def pack(self) -> None:
        """Attend within documents by the kernel for sequences of any lengths, where it serves."""
        self._varlen = self._choose_attention and varlen.use(self.encoder)

    def encode(self, batch: Mapping[str, Any]) -> Features:
        """Compute features of a batch, reading the fields named by ``inputs``."""
        if "offsets" in batch:
            dtype = self._score_dtype(batch["offsets"].device)
            batch = varlen.prepared(batch, dtype, self._varlen)
        return super().encode(batch)

    def _score_dtype(self, device: torch.device) -> torch.dtype:
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        weight: Tensor = self.encoder.get_input_embeddings().weight
        return weight.dtype

    def _pooled(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        if self.pooling == "mean":
            return masked_mean(tokens, attention_mask)
        if self.pooling == "last":
            rows, size, _ = tokens.shape  # len would make a program for so many rows
            last = (torch.arange(size, device=tokens.device) * attention_mask).argmax(1)
            return tokens[torch.arange(rows, device=tokens.device), last]
        return tokens[:, 0]

    def example(self, rows: int, size: int) -> dict[str, Tensor]:
        """Return ``rows`` random texts of at most ``size`` tokens, padded, the same each time."""
        random = torch.Generator().manual_seed(rows * 10_000 + size)
        ids = torch.randint(self.vocab_size, (rows, size), generator=random)
        lengths = torch.randint(1, size + 1, (rows, 1), generator=random)
        lengths[0] = size
        mask = torch.arange(size) < lengths
        kinds = (torch.arange(size) >= lengths // 2) & mask & self._has_segments
        ids = ids.masked_fill(~mask, self.pad_id or 0)
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds.long()}

    def blocks(self) -> list[nn.Module]:
        """Return the embeddings and all that goes with them, then the layers."""
        lists = [m for m in self.encoder.modules() if isinstance(m, nn.ModuleList)]
        layers = max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))
        return [nn.ModuleList(_stem(self.encoder, layers)), *layers]

    def classifier(self, num_classes: int, dropout: float | None = None) -> nn.Module:
        """Build the family's own head, or a linear one where pooling or family has none.

        The first head takes over the pretrained hidden layer, where the weights have one.
        """
        config: Any = self.encoder.config
        if not self._family_head:
            std = getattr(config, "initializer_range", 0.02)
            return LinearHead(self.dim, num_classes, dropout or 0.0, std)
        head = DenseHead(self.dim, num_classes, **family_options(config, dropout))
        if self._pretrained_head:
            state = {**head.state_dict(), **self._pretrained_head}
            head.load_state_dict(state)
            self._pretrained_head = {}
        return head

    def tagger(self, num_classes: int, dropout: float | None = None) -> nn.Module:
        """Build dropout and a linear layer, or the head of ModernBERT, for every token."""
        config: Any = self.encoder.config
        if config.model_type == "modernbert":
            return EveryToken(self.classifier(num_classes, dropout))
        found = (getattr(config, key, None) for key in TAGGER_DROPOUT)
        probs = (prob for prob in (dropout, *found) if prob is not None)
        std = getattr(config, "initializer_range", 0.02)
        return EveryToken(LinearHead(self.dim, num_classes, next(probs, 0.0), std))

    def language_head(self) -> LanguageHead:
        """Build the family's masked language head.

        It takes over the pretrained one, unless the weights have none (as those of a sentence
        encoder), or one that is not known here: a warning then says that a new one begins.
        """
        return self._language_head(causal=False)

    def _language_head(self, causal: bool) -> LanguageHead:
        config: Any = self.encoder.config
        if config.is_encoder_decoder:
            raise ValueError(
                f"model.backbone.config.model_type {config.model_type} has a decoder that predicts "
                "its tokens: set the class_path of the model to DenoisingText."
            )
        head = build_head(config, causal)
        if self.pretrained is None:
            return head
        source = f"model.backbone.pretrained {self.pretrained}"
        lack = f"has a language head that is not known here ({config.model_type})"
        if causal or is_known(config):
            from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

            auto = AutoModelForCausalLM if causal else AutoModelForMaskedLM
            path = resolve(self.pretrained)
            options = {"dtype": torch.float32, "output_loading_info": True}
            options |= {"trust_remote_code": False}
            with from_hub(path, OFFLINE), quiet():
                model, info = auto.from_pretrained(path, config=copy.deepcopy(config), **options)
            state = weights_of(model, causal, info["missing_keys"], self.pretrained)
            if state or not head.state_dict():  # an embedding may be all that a head has
                head.load_state_dict(state)
                return head
            lack = "has no language head"
        warnings.warn(f"{source} {lack}: a new one begins.", stacklevel=2)
        return head

    def recipe(self) -> dict[str, Any]:
        """Return the recipe with the whole config, so that it needs neither hub nor package."""
        recipe = super().recipe()
        recipe["init_args"]["config"] = plain_config(self.encoder.config)
        return recipe


def masked_mean(tokens: Tensor, attention_mask: Tensor) -> Tensor:
    """Average (B, T, D) tokens where the (B, T) mask is True; accumulate in float32."""
    kept = tokens.masked_fill(~attention_mask.unsqueeze(-1), 0)
    total = kept.sum(1, dtype=torch.float32)
    return (total / attention_mask.sum(1, keepdim=True).clamp(min=1)).to(tokens.dtype)


def _pooling(config: Any, causal: bool) -> str:
    """Return what a family's own classifier reads."""
    if getattr(config, "classifier_pooling", "") in ("mean", "late"):  # ModernBERT, EuroBERT
        return "mean"
    return "last" if causal or getattr(config, "summary_type", "") == "last" else "first"  # XLNet


def _positions(encoder: Any) -> tuple[int, int]:
    """Return how many positions there are, and the number of the first."""
    positions = getattr(encoder.config, "max_position_embeddings", None)
    if positions is None or positions <= 0:  # XLNet says -1
        return sys.maxsize, 0
    # The RoBERTa family counts positions from the padding id on.
    tables = [m for name, m in encoder.named_modules() if name.endswith("position_embeddings")]
    offsets = [m.padding_idx + 1 for m in tables if getattr(m, "padding_idx", None) is not None]
    return int(positions - sum(offsets)), sum(offsets)


def _stem(module: nn.Module, layers: nn.Module) -> Iterator[nn.Module]:
    """Yield what lies outside of the layers, except for norms that follow them."""
    after = False
    for name, child in module.named_children():
        if any(m is layers for m in child.modules()):
            after = True
            if child is not layers:
                yield from _stem(child, layers)
        # DeBERTa-v2 lists the norm of its relative position embeddings after the layers, BART that
        # of its embeddings.
        elif (
            not after
            or hasattr(module, "rel_embeddings")
            or "embedding" in name
            or "Norm" not in type(child).__name__
        ):
            yield child
