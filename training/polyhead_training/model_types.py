"""Kinds and names that the configuration and the model share. Imports nothing, so that a configuration is read fast."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

HeadKind = Literal["softmax", "sigmoid", "multilabel", "ordinal", "regression"]
# Kinds of heads whose rows have one of several classes each.
CLASS_KINDS: frozenset[str] = frozenset({"softmax", "sigmoid"})
# Kinds of heads that predict one label, and may abstain from it.
ABSTAINING_KINDS: frozenset[str] = frozenset({"softmax", "sigmoid", "ordinal"})
# Trained heads use ReLU; imported classifiers use what their family does; "none" is a head without a hidden layer.
ActivationKind = Literal["relu", "tanh", "gelu", "none"]
# "embedding": the heads' input features are the sentence embedding.
PoolingKind = Literal["cls", "mean", "cls_mean", "embedding"]
# "shared": the embedding is the heads' input features, including the effects of training on them.
EmbeddingPoolingKind = Literal["cls", "mean", "max", "mean_sqrt_len", "weightedmean", "lasttoken", "shared"]

# Attributes of torch.nn.ModuleDict, which holds the heads by name, and the one that transformers adds to it, as far as
# they are valid names of heads.
RESERVED_HEAD_NAMES = frozenset(
    """
    add_module apply bfloat16 buffers call_super_init children clear compile cpu cuda double dump_patches eval
    extra_repr float forward get_buffer get_extra_state get_parameter get_submodule half ipu items keys load_state_dict
    modules mtia named_buffers named_children named_modules named_parameters parameters pop register_backward_hook
    register_buffer register_forward_hook register_forward_pre_hook register_full_backward_hook
    register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook
    register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_
    set_extra_state set_submodule share_memory smart_apply state_dict to to_empty train training type update values xpu
    zero_grad
    """.split()  # noqa: SIM905
)

# Validation score by which the best epoch is selected, by kind of head: at most 1, higher is better, and independent of
# thresholds that are only fitted at the end.
SELECTION: dict[HeadKind, str] = {
    "softmax": "macro_f1",
    "sigmoid": "macro_f1",
    "multilabel": "mean_average_precision",
    "ordinal": "qwk",
    "regression": "r2",
}
_FIRST_OUTPUTS = {"softmax": "logits", "sigmoid": "sentiment_logits"}


def output_width(kind: str, labels: int) -> int:
    """Returns the number of logits of a head with so many labels.

    A softmax and a multilabel head have one per label, a sigmoid and a regression head one in all, an ordinal head one
    for each two neighboring labels.
    """
    if kind in ("sigmoid", "regression"):
        return 1
    return labels - 1 if kind == "ordinal" else labels


def output_names(heads: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns the output name of each head's logits in an exported graph, by head name, in order.

    The first softmax head's output is ``logits``, the first sigmoid head's is ``sentiment_logits``, any other
    head's, of whatever kind, is ``<name>_logits``.

    Args:
        heads: Name and kind of each head.
    """
    names: dict[str, str] = {}
    for name, kind in heads:
        first = _FIRST_OUTPUTS.get(kind)
        names[name] = f"{name}_logits" if first is None or first in names.values() else first
    return names
