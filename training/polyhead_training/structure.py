"""The parts of a backbone, found by its structure and by a forward pass instead of by the names of its family.

::

    config.json --AutoModel on the meta device--> usable positions, list of layers, or LayoutError
    weights     --one forward pass--------------> order of the parts, and checks that it is an encoder of texts
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from .errors import first_line
from .weights import WeightsError

# Encoders of texts in transformers: the families that it trains by masked language modeling.
FAMILIES = frozenset(MODEL_FOR_MASKED_LM_MAPPING_NAMES) & frozenset(MODEL_MAPPING_NAMES)
EXAMPLES = "albert, bert, camembert, deberta-v2, distilbert, electra, modernbert, mpnet, roberta, xlm-roberta"
_CHOOSE = f"choose an encoder of another family, for example {EXAMPLES}"
# Tokens of the text that the checks run; an even number, so that patterns of blocks are covered.
_PROBE_TOKENS = 8
# Largest difference of a token's vector with and without padding in fp32, relative to the largest number; a vector that
# depends on padding differs by more than a hundred times as much.
_PADDING_TOLERANCE = 1e-3


class LayoutError(WeightsError):
    """A backbone does not have the common layout: embeddings, then a list of layers that each token passes through."""


class Parts(NamedTuple):
    """The parts of a backbone; every parameter belongs to exactly one.

    Attributes:
        embeddings: Everything below the first layer, and tables that all layers share.
        layers: The layers, from the bottom to the top. A module that runs after a layer, such as a final LayerNorm,
            belongs to it. Layers that share their weights are one.
    """

    embeddings: nn.Module
    layers: list[nn.Module]


def empty_backbone(config: PreTrainedConfig) -> nn.Module:
    """Builds a backbone without memory for its weights.

    Raises:
        LayoutError: It is not an encoder, transformers cannot build it from its configuration, or it has a table of
            token types without a row.
    """
    if config.is_encoder_decoder or getattr(config, "is_decoder", False):
        kind = "an encoder-decoder model" if config.is_encoder_decoder else "a decoder"
        raise LayoutError(f"is {kind} ({config.model_type}), not an encoder", _CHOOSE)
    try:
        with torch.device("meta"):
            backbone = AutoModel.from_config(config)
    # Missing packages, and fields that contradict each other.
    except Exception as error:
        raise LayoutError(f"transformers cannot build it ({first_line(error)})", _CHOOSE) from error
    for name, module in backbone.named_modules():
        if "token_type" in name and getattr(module, "num_embeddings", 1) == 0:
            raise LayoutError("config.json: type_vocab_size 0 leaves no type for a text", "set it to 1")
    backbone.pooler = None
    return backbone  # type: ignore[no-any-return]  # transformers is not typed


def usable_positions(backbone: nn.Module, config: PreTrainedConfig) -> int:
    """Returns the maximum tokens per text that a backbone has positions for.

    A position table with a padding row, as in RoBERTa and MPNet, numbers the tokens from the row after it.

    Raises:
        LayoutError: The configuration states no number of positions.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if not positions:
        raise LayoutError("its config.json states no max_position_embeddings", _CHOOSE)
    for name, module in backbone.named_modules():
        padding = getattr(module, "padding_idx", None)
        if "position" in name and padding is not None and getattr(module, "num_embeddings", 0) == positions:
            return int(positions) - int(padding) - 1
    return int(positions)


def find_layers(backbone: nn.Module) -> nn.ModuleList:
    """Returns the list of a backbone's layers: its only list of modules with parameters, nested lists not counted.

    Raises:
        LayoutError: There is no such list, or there are several.
    """
    found = {name: module for name, module in _outermost_lists(backbone, "") if any(True for _ in module.parameters())}
    if len(found) != 1:
        lists = f"has {len(found)} lists of layers ({', '.join(found)})" if found else "has no list of layers"
        raise LayoutError(f"its {type(backbone).__name__} {lists}, where one is expected", _CHOOSE)
    (layers,) = found.values()
    if len({type(layer) for layer in layers}) != 1 or isinstance(layers[0], nn.ModuleList):
        kinds = ", ".join(sorted({type(layer).__name__ for layer in layers}))
        raise LayoutError(f"its layers are of different kinds ({kinds})", _CHOOSE)
    return layers


def split(backbone: nn.Module) -> Parts:
    """Divides a backbone into its embeddings and its layers, by the order in which its modules run.

    Raises:
        LayoutError: The layers do not run in their order.
    """
    layers = find_layers(backbone)
    rest = list(_outside(backbone, layers))
    order = _running_order(backbone, [*rest, *layers])
    ran = [module for module in order if any(module is layer for layer in layers)]
    if ran != list(layers):
        raise LayoutError(f"its {type(backbone).__name__} does not run its {len(layers)} layers in order", _CHOOSE)
    parts: list[list[nn.Module]] = [[], *([layer] for layer in layers)]
    current = 0
    for module in order:
        if any(module is layer for layer in layers):
            current += 1
        else:
            parts[current].append(module)
    parts[0] += [module for module in rest if not any(module is one for one in order)]
    embeddings, *others = [modules[0] if len(modules) == 1 else nn.ModuleList(modules) for modules in parts]
    return Parts(embeddings, others)


def require_encoder(backbone: nn.Module) -> None:
    """Checks that a backbone with weights encodes texts as an encoder does.

    Raises:
        LayoutError: It takes other inputs than token ids and a mask, its output is not one vector per token, a vector
            depends on padding, or a token does not see the text after it.
    """
    name = type(backbone).__name__
    ids, mask = _probe(backbone), torch.ones(1, _PROBE_TOKENS, dtype=torch.int64)
    hidden = _hidden(backbone, ids, mask)  # (1, T, H)
    size = int(backbone.config.hidden_size)  # type: ignore[union-attr, arg-type]
    if tuple(hidden.shape) != (1, _PROBE_TOKENS, size):
        shape = f"{tuple(hidden.shape)} for {_PROBE_TOKENS} tokens of {size} numbers"
        raise LayoutError(f"the output of its {name} has the shape {shape}", _CHOOSE)
    padding = torch.full((1, 3), int(backbone.config.pad_token_id or 0))  # type: ignore[union-attr, arg-type]
    padded = _hidden(backbone, torch.cat([ids, padding], 1), torch.cat([mask, torch.zeros_like(padding)], 1))
    difference = (padded[:, :_PROBE_TOKENS] - hidden).abs().max() / hidden.abs().max()
    if not difference <= _PADDING_TOLERANCE:
        raise LayoutError(f"the vectors of its {name} depend on padding: they differ by {difference:.2g}", _CHOOSE)
    changed = ids.clone()
    changed[0, -1] = ids[0, 0]
    other = _hidden(backbone, changed, mask)
    # If not even the changed token differs, the weights are at fault; a later check names that.
    if torch.equal(other[:, 0], hidden[:, 0]) and not torch.equal(other, hidden):
        raise LayoutError(f"in its {name}, a token does not see the text after it, as in a decoder", _CHOOSE)


def linear_shapes(backbone: nn.Module) -> list[tuple[int, int]]:
    """Returns the shape (in, out) of each linear layer that runs on the tokens of a text; shared ones count once."""
    ids = _probe(backbone)
    seen: dict[int, tuple[int, int]] = {}

    def record(module: Any, inputs: tuple[Any, ...]) -> None:
        # Others run on tables: DeBERTa's projections of relative positions are the same for every text.
        if inputs and inputs[0].shape[:2] == ids.shape:
            seen[id(module.weight)] = (module.in_features, module.out_features)

    with _hooks([module for module in backbone.modules() if isinstance(module, nn.Linear)], record):
        _hidden(backbone, ids, torch.ones_like(ids))
    return list(seen.values())


def _outermost_lists(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.ModuleList]]:
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield f"{prefix}{name}", child
        else:
            yield from _outermost_lists(child, f"{prefix}{name}.")


def _outside(module: nn.Module, layers: nn.ModuleList) -> Iterator[nn.Module]:
    """Yields the largest modules without any of the layers, and the parameters between them as lists."""
    own = list(module.parameters(recurse=False))
    if own:
        yield nn.ParameterList(own)
    for child in module.children():
        if child is layers:
            continue
        if any(one is layers for one in child.modules()):
            yield from _outside(child, layers)
        else:
            yield child


def _running_order(backbone: nn.Module, modules: list[nn.Module]) -> list[nn.Module]:
    """Returns the modules in the order in which a forward pass first calls them, without those that it does not."""
    order: list[nn.Module] = []

    def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        del inputs
        if not any(module is one for one in order):
            order.append(module)

    ids = _probe(backbone)
    with _hooks(modules, record):
        _hidden(backbone, ids, torch.ones_like(ids))
    return order


@contextmanager
def _hooks(modules: list[Any], record: Any) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(record) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _probe(backbone: nn.Module) -> Tensor:
    """Returns a text of different tokens, none of them the padding token, (1, T)."""
    config: Any = backbone.config
    padding = int(config.pad_token_id or 0)
    numbers = [number for number in range(min(int(config.vocab_size), _PROBE_TOKENS + 1)) if number != padding]
    return torch.tensor([(numbers * _PROBE_TOKENS)[:_PROBE_TOKENS]])


def _hidden(backbone: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Runs a backbone in evaluation mode, and leaves each of its modules in the mode that it was in."""
    modes = {module: module.training for module in backbone.modules()}
    device = next(backbone.parameters()).device
    backbone.eval()
    try:
        with torch.no_grad():
            outputs = backbone(input_ids=ids.to(device), attention_mask=mask.to(device))
        return outputs.last_hidden_state.cpu()  # type: ignore[no-any-return]
    except Exception as error:
        reason = f"its {type(backbone).__name__} does not encode token ids and a mask ({first_line(error)})"
        raise LayoutError(reason, _CHOOSE) from error
    finally:
        for module, training in modes.items():
            module.training = training
