"""Sections of the training configuration about the optimization: hyperparameters and stages."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from .abstain_config import AbstainConfig, PredictionSetsConfig
from .config_section import Section, require
from .recipes import RecipeName

PartName = Annotated[str, Field(pattern=r"^(heads|head:.+|pooling|layers(:[1-9][0-9]*)?|embeddings|backbone|all)$")]


class StageConfig(Section):
    """A training stage: some epochs that train some parts, with its own learning-rate schedule."""

    name: str
    """Name of the stage in metrics and messages."""
    train: tuple[PartName, ...] = Field(min_length=1)
    """Parts to train: heads, head:NAME, pooling, layers (all of them), layers:N (the top N), embeddings, backbone, all.
    Every other part is frozen."""
    tasks: tuple[Literal["heads", "embedding"], ...] = Field(default=("heads", "embedding"), min_length=1)
    """What the stage learns: heads (from the labelled rows), embedding (from data.embedding). A stage that changes no
    part of the sentence embedding skips data.embedding; one with loss contrastive learns heads only."""
    loss: Literal["heads", "contrastive"] = "heads"
    """What the stage minimizes on labelled rows, beside distillation: heads (the losses of the heads), or contrastive
    (texts with equal labels receive similar sentence embeddings, texts with different labels dissimilar ones)."""
    solver: Literal["adamw", "lbfgs"] = "adamw"
    """adamw (steps of a few rows), or lbfgs (all rows at once until the loss no longer falls, in one step; for stages
    that train heads only)."""
    penalty: float = Field(default=1.0, ge=0)
    """Weight of the squared weights of the heads against the rows' losses with lbfgs: 1 / C of scikit-learn's
    LogisticRegression."""
    epochs: int = Field(default=1, ge=1)
    """Number of epochs over the training rows and the sources of data.embedding."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of the stage, reached at the end of the warmup. Required, except with lbfgs, which has none.
    """
    learning_rates: dict[PartName, Annotated[float, Field(gt=0)]] = Field(default={})
    """Peak learning rates of individual parts, by part. Default: learning_rate."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor of the learning rate from each backbone layer to the one below it; the embeddings are below the first
    layer. 1 trains every layer at the same rate; 0.9 suits 6 layers, 0.95 suits 12."""
    unfreeze_over: float = Field(default=0.0, ge=0, le=1)
    """Share of the stage's steps over which its layers are unfrozen one after the other, from the top, the embeddings
    last; 0 trains all of them from the first step."""

    @model_validator(mode="before")
    @classmethod
    def _loss_and_solver_choose_defaults(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        tasks = {"tasks": ("heads",)} if values.get("loss") == "contrastive" else {}
        # lbfgs chooses its steps.
        rate = {"learning_rate": 1.0} if values.get("solver") == "lbfgs" else {}
        return {**tasks, **rate, **values}

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        heads_only = all(part.startswith("head") for part in self.train)
        trains_heads = any(part == "all" or part.startswith("head") for part in self.train)
        reasons = []
        if self.loss == "contrastive" and trains_heads:
            reasons.append(f"train {list(self.train)} and loss 'contrastive': it trains no heads; name other parts")
        if self.loss == "contrastive" and set(self.tasks) != {"heads"}:
            reasons.append(
                f"tasks {list(self.tasks)} and loss 'contrastive': it learns from labelled rows only: remove tasks; "
                "data.embedding needs a stage with loss 'heads'"
            )
        if self.solver == "lbfgs" and not heads_only:
            reasons.append(f"train {list(self.train)} and solver 'lbfgs': it trains heads only; remove the other parts")
        for field in ("learning_rate", "learning_rates", "epochs"):
            default = {"learning_rate": 1.0, "learning_rates": {}, "epochs": 1}[field]
            if self.solver == "lbfgs" and (value := getattr(self, field)) != default:
                reasons.append(f"{field} {value} and solver 'lbfgs', which has none: remove {field}")
        if self.solver == "adamw" and self.penalty != 1.0:
            reasons.append(f"penalty {self.penalty} and solver 'adamw': use training.weight_decay, or solver 'lbfgs'")
        return require(self, reasons)


_DEFAULT_STAGES = (
    StageConfig(name="heads", train=("heads",), epochs=1, learning_rate=1e-3),
    StageConfig(name="top", train=("pooling", "heads", "layers:2"), epochs=2, learning_rate=1e-4),
)


class HeadsConfig(Section):
    """Settings of every head that has none of its own."""

    abstain: AbstainConfig | None = None
    """Accuracy that softmax, sigmoid and ordinal heads keep by abstaining. Default: heads never abstain."""
    prediction_sets: PredictionSetsConfig | None = None
    """Coverage of the sets of labels that softmax heads return on request. Default: heads have no sets."""


class TrainingConfig(Section):
    """Training hyperparameters."""

    seed: int = Field(default=0, ge=0)
    """Seed of the heads' initial weights, of dropout, of the order of the rows and of the validation split."""
    batch_size: int = Field(default=32, ge=1)
    """Texts per forward pass of a process."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Forward and backward passes of each process per optimizer step."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW; biases and LayerNorm are exempt."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Maximum Euclidean norm of the gradient; larger gradients are scaled down to it."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of a stage's steps in which its learning rate rises linearly, 0 to 1."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Number format of matrix products during training; fp16 requires a GPU."""
    loss_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default={})
    """Weight of a head's loss, by head name. Default: 1."""
    loss_weighting: Literal["fixed", "uncertainty"] = "fixed"
    """fixed (loss_weights only), or uncertainty (a learned weight per head, Kendall et al., arXiv 1705.07115)."""
    distillation: float = Field(default=0.2, ge=0)
    """Weight of the distillation loss, 1 - cosine between the sentence embedding and the backbone's embedding before
    training. It applies in stages that train parts of the embedding; 0 disables it."""
    average: Literal["none", "ema", "swa"] = "none"
    """Weights that evaluation, selection and the run use: none (those of the last step), ema (exponential moving
    average over the steps of a stage), or swa (mean over the second half of a stage's steps, arXiv 1803.05407)."""
    ema_decay: float = Field(default=0.999, gt=0, lt=1)
    """Weight of the earlier average in each step of ema; the first steps of a stage use less."""
    r_drop: float = Field(default=0.0, ge=0)
    """Weight of the disagreement of two forward passes with different dropout (R-Drop, arXiv 2106.14448), which doubles
    the time of a step; 0 disables it."""
    teacher: str | None = None
    """Run directory of a model whose predictions the heads of the same names learn beside the labels, relative to the
    configuration file. Its logits of the training texts are computed once."""
    teacher_weight: float = Field(default=1.0, gt=0)
    """Weight of the disagreement with the teacher, the Kullback-Leibler divergence times teacher_temperature^2."""
    teacher_temperature: float = Field(default=2.0, gt=0)
    """Divisor of the logits of teacher and model when they are compared; higher values teach more about unlikely
    labels."""
    matryoshka: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Dimensions to which the sentence embedding can be cut: every loss of data.embedding is the mean over the whole
    embedding and its first N dimensions, for each N (Kusupati et al., arXiv 2205.13147). Empty: only the whole."""
    select: Literal["best", "last"] = "best"
    """Weights that the run keeps: last, or best (of the epoch with the highest mean score of the heads on validation:
    macro-F1 of softmax and sigmoid heads, mean average precision of multilabel, quadratic weighted kappa of ordinal, R2
    of regression heads; with data.embedding and data.similarity also the Spearman correlation of similarity)."""
    feature_cache_mb: int = Field(default=4096, ge=0)
    """Maximum size, in MB (10^6 bytes), of the files in which stages with a frozen backbone keep its vectors of the
    training and validation texts, so that it computes each text only once; 0 disables them."""
    checkpoint_steps: int = Field(default=500, ge=1)
    """Steps between checkpoints; the end of an epoch and a signal also write one."""
    heads: HeadsConfig = HeadsConfig()
    """Settings of every head."""
    novelty: bool = True
    """Whether to fit the novelty of texts, a score of how far the embedding of a text lies from those of the training
    texts. It takes a forward pass over up to 2,000 training and 1,000 validation texts, and needs 50 of each."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers that receive the metrics, by their names in accelerate: tensorboard, wandb, mlflow, ..."""
    recipe: RecipeName = "standard"
    """Defaults of other settings: standard, or few-shot (8 to 64 rows per label). A field that is set keeps its
    value."""
    stages: tuple[StageConfig, ...] = _DEFAULT_STAGES
    """The stages, in order; an empty list leaves the model untrained, a feature extractor."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        without = {"ema_decay": "average = 'ema'"} if self.average != "ema" else {}
        if self.teacher is None:
            without |= {"teacher_weight": "teacher", "teacher_temperature": "teacher"}
        fields = type(self).model_fields
        reasons = [
            f"{name} has no effect without {other}: set {other.partition(' ')[0]}, or remove {name}"
            for name, other in without.items()
            if getattr(self, name) != fields[name].default
        ]
        if self.stages and not any(stage.loss == "heads" and stage.solver == "adamw" for stage in self.stages):
            reasons += [
                f"{name} has no effect: every stage has loss 'contrastive' or solver 'lbfgs'; remove {name}"
                for name in ("teacher", "r_drop")
                if getattr(self, name)
            ]
        return require(self, reasons)

    @field_validator("stages")
    @classmethod
    def _stages_have_their_own_names(cls, stages: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
        names = [stage.name for stage in stages]
        if len(set(names)) < len(names):
            raise ValueError(f"names {names}: stages must have distinct names")
        return stages
