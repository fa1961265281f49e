"""The model: one backbone whose token vectors feed a sentence embedding and a list of heads, in one forward pass.

Shapes: B texts, T tokens, H hidden size::

    input_ids (B, T) --backbone--> hidden (B, T, H) --summarize--> cls, mean (B, H)
    cls, mean (B, H) --embedding pooling, embedding layers--> sentence_embedding (B, E); E is H without such layers
                     --head pooling--> features (B, H) --each head--> logits (B, outputs)
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from .embedding import build_layers, embedding_size, pool
from .heads import Head
from .model_types import PoolingKind, output_names
from .structure import FAMILIES, Parts, require_encoder, split
from .weights import load_pretrained

# Attention implementations of transformers itself; any other name makes it fetch a kernel from the hub.
_ATTENTIONS = frozenset({None, "eager", "sdpa"})


class Outputs(NamedTuple):
    """Outputs of one forward pass.

    Attributes:
        sentence_embedding: (B, H) float, of Euclidean length 1 if the configuration sets ``normalize``.
        logits: Logits by head name, (B, ``output_width``); of a regression head the value itself.
    """

    sentence_embedding: Tensor
    logits: dict[str, Tensor]


class TextVectors(NamedTuple):
    """The token vectors of B texts as far as pooling depends on them; padding has no effect on them.

    Attributes:
        cls: (B, H) vector of the first token.
        mean: (B, H) mean over the vectors of the text's tokens.
        pooled: (B, P) another pooling of them, if the sentence embedding uses one.
    """

    cls: Tensor
    mean: Tensor
    pooled: Tensor | None = None


class PolyheadConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers is not typed
    """Configuration of ``PolyheadModel``; ``config.json`` of a run and of a bundle's ``torch/`` folder.

    Args:
        backbone: The backbone's own configuration, ``model_type`` included.
        pooling: Pooling of the token vectors into the heads' features.
        embedding_pooling: Pooling of the token vectors into the sentence embedding; the vectors of several kinds,
            joined by ``+``, are concatenated.
        embedding_layers: Layers between the embedding's pooling and its normalization; see ``EmbeddingLayer``.
        normalize: Whether to scale the sentence embedding to Euclidean length 1.
        heads: One dictionary per head: ``name``, ``kind``, ``labels`` (ordered), ``hidden_size``, ``dropout``,
            ``activation`` (``relu`` when absent; ``none`` for a head without a hidden layer), ``norm_eps`` (epsilon of
            a LayerNorm after the activation; none when absent), and ``spread`` of a trained regression head, the
            standard deviation of its training targets.
        max_tokens: Maximum tokens per text, special tokens and prompt included; longer texts are truncated.
        prompts: Texts that may be put before a text before it is tokenized, by name.
        pad_token_id: Token that pads the shorter texts of a batch.
    """

    model_type = "polyhead"

    def __init__(
        self,
        *,
        backbone: dict[str, Any] | None = None,
        pooling: PoolingKind = "cls_mean",
        embedding_pooling: str = "mean",
        embedding_layers: list[dict[str, Any]] | None = None,
        normalize: bool = True,
        heads: list[dict[str, Any]] | None = None,
        max_tokens: int = 256,
        prompts: dict[str, str] | None = None,
        pad_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.backbone = backbone or {"model_type": "bert"}
        self.pooling = pooling
        self.embedding_pooling = embedding_pooling
        self.embedding_layers = embedding_layers or []
        self.normalize = normalize
        self.heads = heads or []
        self.max_tokens = max_tokens
        self.prompts = prompts or {}
        self.pad_token_id = pad_token_id

    def backbone_config(self) -> PreTrainedConfig:
        """Returns the backbone's configuration as an object of its own class.

        Raises:
            ValueError: The family is not supported, or the configuration refers to third-party code.
        """
        values = dict(self.backbone)
        if values.get("model_type") not in FAMILIES:
            raise ValueError(f"backbone: the family {values.get('model_type')!r} is not supported")
        _require_no_code("backbone", values)
        config = AutoConfig.for_model(values.pop("model_type"), **values)
        if config.sub_configs:
            # Each could refer to code of its own.
            raise ValueError(f"backbone: the family {config.model_type!r} is not supported, as it has several models")
        return cast(PreTrainedConfig, config)

    def embedding_size(self) -> int:
        """Returns the number of dimensions of the sentence embedding."""
        hidden_size = int(self.backbone_config().hidden_size)
        return embedding_size(self.embedding_pooling, self.embedding_layers, hidden_size)

    def output_names(self) -> dict[str, str]:
        """Returns the output name of each head's logits in an exported graph, by head name, in order."""
        return output_names((head["name"], head["kind"]) for head in self.heads)


def _require_no_code(where: str, values: dict[str, Any]) -> None:
    """Rejects settings that would make transformers fetch code."""
    if "auto_map" in values:
        raise ValueError(f"{where}: auto_map refers to code outside transformers")
    for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        if values.get(key) not in _ATTENTIONS:
            raise ValueError(f"{where}: {key} {values[key]!r} is not an implementation of transformers")


def summarize(hidden: Tensor, attention_mask: Tensor, embedding_pooling: str = "mean") -> TextVectors:
    """Summarizes (B, T, H) token vectors, with the (B, T) mask of real tokens, for pooling."""
    pooled = None
    if embedding_pooling not in {"cls", "mean", "shared"}:
        pooled = torch.cat([pool(hidden, attention_mask, kind) for kind in embedding_pooling.split("+")], dim=-1)
    return TextVectors(hidden[:, 0], pool(hidden, attention_mask, "mean"), pooled)


class Pooling(nn.Module):
    """Combines the vectors of a text into one vector.

    ``cls`` takes the first token's vector, ``mean`` the mean over the text's tokens. ``cls_mean`` combines both: a
    linear layer over both is added to the mean, the residual branch, and LayerNorm follows, as in a transformer's own
    sub-layers. The linear layer starts at zero, so training starts from the normalized mean.
    """

    def __init__(self, kind: str, hidden_size: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "cls_mean":
            self.mix = nn.Linear(2 * hidden_size, hidden_size)
            self.norm = nn.LayerNorm(hidden_size)

    def forward(self, vectors: TextVectors) -> Tensor:
        """Computes a vector of each text, (B, H); of another size where poolings are concatenated."""
        cls, mean, pooled = vectors
        if self.kind == "cls":
            return cls
        if self.kind == "mean":
            return mean
        if self.kind != "cls_mean":
            return cast(Tensor, pooled)
        return cast(Tensor, self.norm(mean + self.mix(torch.cat([cls, mean], dim=-1))))  # (B, H)


class PolyheadModel(PreTrainedModel):  # type: ignore[misc]  # transformers is not typed
    """A backbone shared by all heads and the sentence embedding (hard parameter sharing).

    ``save_pretrained`` and ``from_pretrained`` write and read ``config.json`` and ``model.safetensors``.
    """

    config_class = PolyheadConfig
    base_model_prefix = "polyhead"
    _supports_sdpa = True
    config: PolyheadConfig

    def __init__(self, config: PolyheadConfig) -> None:
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.backbone_config())
        # A backbone's own pooler serves next-sentence prediction; nothing here uses it.
        self.backbone.pooler = None
        hidden_size = int(self.backbone.config.hidden_size)
        self.pooling = Pooling(config.pooling, hidden_size)
        self.embedding_pooling = None if config.embedding_pooling == "shared" else Pooling(config.embedding_pooling, 0)
        self.embedding_layers = build_layers(config.embedding_pooling, config.embedding_layers, hidden_size)
        features = config.embedding_size() if config.pooling == "embedding" else hidden_size
        self.heads = nn.ModuleDict(
            {
                head["name"]: Head(
                    head["kind"],
                    len(head["labels"]),
                    features,
                    head.get("hidden_size") or hidden_size,
                    head["dropout"],
                    head.get("activation", "relu"),
                    head.get("norm_eps"),
                )
                for head in config.heads
            }
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initializes weights that are not in the checkpoint, with BERT's small normal distribution."""
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    @classmethod
    def from_backbone(cls, folder: Path, **settings: Any) -> PolyheadModel:
        """Builds a model from a pretrained backbone and newly initialized heads.

        Args:
            folder: A transformers checkpoint with ``config.json`` and safetensors weights.
            **settings: Fields of ``PolyheadConfig`` other than ``backbone``.

        Raises:
            WeightsError: The folder has no safetensors weights, they do not match ``config.json``, or the backbone does
                not have the layout of an encoder.
        """
        backbone = load_pretrained(AutoModel, folder)
        model = cls(PolyheadConfig(backbone=backbone.config.to_diff_dict(), **settings))
        backbone.pooler = None
        model.backbone.load_state_dict(backbone.state_dict())
        require_encoder(model.backbone)
        if model.config.pooling == "cls_mean":
            nn.init.zeros_(model.pooling.mix.weight)
        return model

    @functools.cached_property
    def backbone_parts(self) -> Parts:
        """The backbone's embeddings and layers.

        Raises:
            LayoutError: It does not have the common layout.
        """
        return split(self.backbone)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Outputs:
        """Computes the sentence embeddings and the logits of every head in one forward pass.

        Args:
            input_ids: (B, T) int64 token ids.
            attention_mask: (B, T) int64, 1 for the text's tokens and 0 for padding.
        """
        return self.outputs(self.encode(input_ids, attention_mask))

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> TextVectors:
        """Runs the backbone alone; takes the same arguments as ``forward``."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, T, H)
        return summarize(hidden, attention_mask, self.config.embedding_pooling)

    @property
    def vectors_per_text(self) -> int:
        """Number of vectors of a text that pooling depends on."""
        return 2 if self.config.embedding_pooling in {"cls", "mean", "shared"} else 3

    def standardize(self, standardizations: Mapping[str, tuple[float, float]]) -> None:
        """Sets the mean and the spread of the training targets of each regression head, by its name."""
        for name, found in standardizations.items():
            cast(Head, self.heads[name]).standardization = found

    def fold(self) -> None:
        """Moves the standardizations into the last layers of the heads; ``config.heads`` keeps the spreads."""
        for described in self.config.heads:
            head = cast(Head, self.heads[described["name"]])
            if head.standardization is not None:
                described["spread"] = head.standardization[1]
                head.fold()

    def outputs(self, vectors: TextVectors) -> Outputs:
        """Computes the sentence embeddings and the logits of every head from the backbone's vectors of B texts."""
        embedding, features = self.pool(vectors)
        return Outputs(embedding, {name: head(features) for name, head in self.heads.items()})

    def pool(self, vectors: TextVectors) -> tuple[Tensor, Tensor]:
        """Computes the sentence embeddings, (B, E), and the inputs of the heads from the backbone's vectors."""
        own = self.embedding_pooling
        pooled = self.pooling(vectors) if own is None or self.config.pooling != "embedding" else None  # (B, H)
        embedding = self.embedding_layers(pooled if own is None else own(vectors))  # (B, E)
        if self.config.normalize:
            embedding = nn.functional.normalize(embedding, dim=-1)
        return embedding, embedding if pooled is None else pooled


def load_model(folder: Path) -> PolyheadModel:
    """Loads a model that ``save_pretrained`` wrote, in fp32, in evaluation mode, on the CPU.

    Args:
        folder: ``model/`` of a run, or ``torch/`` of a bundle.

    Raises:
        ValueError: A weight is missing or unexpected, or the configuration refers to third-party code.
        Exception: The files are missing or damaged; each library raises its own classes for that.
    """
    settings = json.loads((folder / "config.json").read_bytes())
    if settings.get("model_type") != PolyheadConfig.model_type:
        raise ValueError(f"config.json: model_type is {settings.get('model_type')!r}, not 'polyhead'")
    _require_no_code("config.json", settings)
    model, report = PolyheadModel.from_pretrained(
        folder,
        trust_remote_code=False,
        local_files_only=True,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
    )
    # transformers only warns: it initializes missing weights at random and ignores unexpected ones.
    for fault in ("missing", "unexpected"):
        if names := sorted(report[f"{fault}_keys"]):
            raise ValueError(f"the weights do not match the model: {names[0]} is {fault}")
    return cast(PolyheadModel, model.eval())


AutoConfig.register("polyhead", PolyheadConfig)
AutoModel.register(PolyheadConfig, PolyheadModel)
