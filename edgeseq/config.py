"""The configuration of a training run, typed and strict: its tables, and what has to hold between them.

Builders read it; modules never do. See `config_files` for where it comes from.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgeseq_runtime.manifest import RESERVED_NAMES

_Decay = Annotated[float, Field(ge=0, lt=1)]

PrecisionName = Literal["auto", "float32", "bfloat16"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class DataConfig(_Table):
    """`[data]`: parallel text, one sentence a line, plain, .gz or .xz; relative paths start at the config file."""

    src: str
    """Training text, source side."""
    tgt: str
    """Training text, target side; as many lines as src."""
    valid_src: str
    """Held-out text, source side."""
    valid_tgt: str
    """Held-out text, target side."""
    tokenizer: str | None = None
    """A SentencePiece model to use; None: train one on both sides of the training text."""
    vocab_size: int = Field(4000, ge=16, le=65536)
    """Pieces of the tokenizer that is trained."""
    max_pieces: int = Field(128, ge=1)
    """Pairs with more pieces on either side (EOS included) are left out, and counted."""
    licence: str = "unknown"
    """Licence of the data; travels into the bundle."""
    description: str = "not described"
    """Where the data comes from; travels into the bundle."""


class StackConfig(_Table):
    """`[model.encoder]` or `[model.decoder]`."""

    mixer: Literal["dynamic", "lightweight", "attention"] = "dynamic"
    """How positions are mixed: by a dynamic or lightweight convolution, or by self-attention."""
    kernel_sizes: list[int] = []
    """Of convolutions: taps of each block, from the first block to the last; as many blocks as numbers."""
    windows: list[int] = []
    """Of self-attention: positions that each block reads, from the first block to the last; 0 reads them all. In the
    decoder they are the current one and those before it, in the encoder it and as many on either side."""
    convolution_heads: int = Field(4, ge=1)
    """Tap sets per convolution; dim is a multiple."""
    feed_forward_dim: int = Field(512, ge=1)
    """Hidden width of the feed-forward layers."""
    glu: bool = False
    """Gate the convolution's input by a gated linear unit."""

    @property
    def reaches(self) -> list[int]:
        """Positions that each block reads, taps or windows; its length is the number of blocks."""
        return self.windows if self.mixer == "attention" else self.kernel_sizes

    @model_validator(mode="after")
    def _check_mixer(self) -> Self:
        attention = self.mixer == "attention"
        wanted, unwanted = ("windows", "kernel_sizes") if attention else ("kernel_sizes", "windows")
        problems = []
        if getattr(self, unwanted):
            problems.append(f"{unwanted} do not belong to mixer = {self.mixer!r}, which has {wanted}")
        if not getattr(self, wanted):
            problems.append(f"mixer = {self.mixer!r} needs {wanted}, a number for each block")
        problems += [
            f"{name} belongs to convolutions, not to mixer = {self.mixer!r}"
            for name in ("glu", "convolution_heads")
            if attention and getattr(self, name) != type(self).model_fields[name].default
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self


class ModelConfig(_Table):
    """`[model]`."""

    dim: int = Field(256, ge=2)
    """Channels; even, and a multiple of all head counts."""
    attention_heads: int = Field(4, ge=1)
    """Heads of all attention, over the source and of the stacks over themselves."""
    encoder: StackConfig = StackConfig(kernel_sizes=[3, 7, 15, 31])
    """The encoder's blocks."""
    decoder: StackConfig = StackConfig(kernel_sizes=[3, 7, 15, 31, 31, 31])
    """The decoder's blocks; each has an exit."""
    norm: Literal["pre", "post"] = "pre"
    """Layer norm before each branch or after each sum."""
    head: Literal["tied", "untied"] = "tied"
    """One exit head for all blocks or one per block."""
    tied_embeddings: bool = True
    """Share the table of source, target and, where tied, the exit head."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """After embeddings and branches."""
    activation_dropout: float = Field(0.0, ge=0, lt=1)
    """Inside feed-forward layers."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """On attention weights."""
    weight_dropout: float = Field(0.0, ge=0, lt=1)
    """DropConnect on the convolutions' taps."""

    @model_validator(mode="after")
    def _check_divisibility(self) -> Self:
        stacks = (("encoder", self.encoder), ("decoder", self.decoder))
        for name, heads in (
            ("attention_heads", self.attention_heads),
            *(
                (f"{name}.convolution_heads", stack.convolution_heads)
                for name, stack in stacks
                if stack.mixer != "attention"
            ),
            ("2 (sines and cosines)", 2),
        ):
            if self.dim % heads:
                raise ValueError(f"dim = {self.dim} is not a multiple of {name} = {heads}")
        return self

    @model_validator(mode="after")
    def _check_reaches(self) -> Self:
        for size in self.encoder.kernel_sizes:
            if size < 1 or size % 2 == 0:
                raise ValueError(f"encoder.kernel_sizes holds {size}; a centred convolution needs odd numbers")
        for size in self.encoder.windows:
            if size < 0 or (size and size % 2 == 0):
                raise ValueError(f"encoder.windows holds {size}; centred attention needs odd numbers, or 0 for all")
        for size in self.decoder.kernel_sizes:
            if size < 1:
                raise ValueError(f"decoder.kernel_sizes holds {size}; expected positive numbers")
        for size in self.decoder.windows:
            if size < 0:
                raise ValueError(f"decoder.windows holds {size}; expected positive numbers, or 0 for all")
        return self


class ScheduleConfig(_Table):
    """Length and learning rate of a phase."""

    epochs: float = Field(10.0, gt=0)
    """Passes over the training data; a fraction is allowed."""
    learning_rate: float = Field(2e-3, gt=0)
    """The peak."""
    schedule: Literal["inverse_sqrt", "cosine"] = "cosine"
    """How the rate falls after warm-up: with 1/sqrt(step), or along a half cosine to zero at the end."""
    warmup_steps: int = Field(400, ge=0)
    """Steps of linear rise to the peak."""
    average_checkpoints: int = Field(1, ge=1)
    """Newest checkpoints of the phase whose mean is its result; at most training.keep_checkpoints."""


class TrainingConfig(ScheduleConfig):
    """`[training]`: phase 1, the training of all exits (Elbayad et al., section 2.2)."""

    seed: int = Field(1, ge=0)
    """Of weights, dropout and data order."""
    batch_tokens: int = Field(4096, ge=1)
    """Positions per batch on its longer side, at most; almost none of them are padding."""
    accumulation: int = Field(1, ge=1)
    """Batches per optimiser step."""
    start_from: str | None = None
    """Folder of a finished run whose weights to start from: every one that has a name and a shape of this model's; the
    others start at random. Its tokenizer is taken too. For going on with one's own text, and for a student that keeps
    its teacher's encoder. None: all start at random."""
    exits: Literal["all", "sampled", "last", "mixed"] = "sampled"
    """Exits in the loss of each step. Aligned training: all, or the last and one drawn from the others, weighted so
    that the expected gradient is the same. Last: an ordinary model, of use at full depth only. Mixed: every token stops
    at a random block, and is copied upward."""
    paths: int = Field(1, ge=1)
    """M: random depths drawn for each token of a step, where exits are mixed."""
    exit_weights: Literal["uniform", "n", "sqrt_n", "inverse_sqrt_n", "inverse_n"] = "uniform"
    """Weight w_n of exit n in the aligned loss (table 1a of the paper)."""
    gradient_scaling: float = Field(0.0, ge=0)
    """γ: weight of a block's own exit against all exits above it (appendix A); 0 leaves gradients as they are."""
    self_distillation: float = Field(0.0, ge=0, lt=1)
    """Share of each lower exit's target that is the last exit's distribution instead of the reference."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Share of the target distribution that is spread evenly over the vocabulary."""
    clip_norm: float = Field(1.0, gt=0)
    """Greatest norm of the gradient."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled, on matrices only."""
    adam_betas: tuple[_Decay, _Decay] = (0.9, 0.98)
    """Decay of the two moments per step, from 0 to below 1."""
    precision: PrecisionName = "auto"
    """Of matrix products, by autocast; weights and sums stay float32. auto takes bfloat16 where it is the faster."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA where torch finds it."""
    threads: int = Field(0, ge=0)
    """CPU threads; 0: all cores."""
    valid_interval: int = Field(1000, ge=1)
    """Steps between validations; each writes a checkpoint."""
    valid_sentences: int = Field(500, ge=1)
    """Validation pairs that are translated for BLEU; the loss is over all."""
    valid_depths: list[int] = []
    """Depths at which BLEU is measured; empty: the first, the middle and the last; with exits = "last" that alone."""
    patience: int = Field(0, ge=0)
    """Stop after so many validations without a better loss at full depth; 0: never."""
    keep_checkpoints: int = Field(5, ge=1)
    """Newest checkpoints that stay on disk."""


class JointConfig(ScheduleConfig):
    """`[joint]`: phase 2 of the paper, L = L_dec + α · L_exit: the trunk goes on training with the first predictor.

    Without this table there is no phase 2.
    """

    epochs: float = Field(2.0, gt=0)
    """Passes over the training data."""
    alpha: float = Field(1.0, gt=0)
    """α: weight of the predictor's loss."""
    learning_rate: float = Field(6e-4, gt=0)
    """The peak."""
    warmup_steps: int = Field(50, ge=0)
    """Steps of linear rise to the peak."""


class FrozenConfig(_Table):
    """`[frozen]`: how all other predictors are trained, on exit states computed once, when the trunk is done."""

    tokens: int = Field(200_000, ge=1)
    """Target tokens whose exit states are kept."""
    epochs: int = Field(5, ge=1)
    """Passes over them."""
    learning_rate: float = Field(3e-3, gt=0)
    """At the start; falls along a half cosine."""


class PredictorConfig(_Table):
    """`[[predictors]]`: what tells how many blocks a token needs, and what it learns (Elbayad et al., section 3).

    Without any of these tables there is one, kind = "halting" and target = "gain". `--set` takes all of them at once:
    --set 'predictors=[{kind="certainty"}]'.
    """

    name: str = ""
    """What depth policies call it; empty: its kind."""
    kind: Literal["halting", "certainty", "multinomial", "sequence"] = "halting"
    """A unit that stops a token or not after each block, by the exit state (halting) or by how certain the exit is of
    its piece; or a depth chosen at once, for a token after block 1, or for a whole sentence before the first."""
    units: Literal["per_block", "shared"] = "per_block"
    """Halting: a unit per block, or one for all (as the paper prints it)."""
    oracle: Literal["likelihood", "correctness", "agreement"] = "agreement"
    """What makes a depth good: the log-likelihood of the reference token, whether that is the argmax, or whether
    the argmax is that of the last block."""
    target: Literal["depth", "gain"] = "depth"
    """What is learnt of the oracle: its one depth, as in the paper; or, by each halting unit for itself, whether any
    later block is worth its price."""
    sigma: float = Field(0.0, ge=0)
    """σ: width of the kernel that smooths over neighbouring tokens; 0: the token alone."""
    depth_penalty: float = Field(0.05, ge=0)
    """λ: what a depth costs for each unit of its price, in the oracle's own units."""
    prices: list[float] = []
    """Price of each depth from 1 to N, such as measured milliseconds per token; empty: 1, 2, ..., N blocks."""

    @model_validator(mode="before")
    @classmethod
    def _name_by_kind(cls, table: Any) -> Any:
        if isinstance(table, dict) and not table.get("name"):
            return {**table, "name": table.get("kind", "halting")}
        return table

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not re.fullmatch("[a-z][a-z0-9_-]{0,49}", self.name) or self.name in RESERVED_NAMES:
            raise ValueError(
                f"name = {self.name!r} cannot name a predictor; use a small letter, then small letters, digits, '-' "
                f"and '_', and none of {', '.join(sorted(RESERVED_NAMES))}"
            )
        if self.units == "shared" and self.kind != "halting":
            raise ValueError(f"units = 'shared' is for kind = 'halting', not {self.kind!r}; leave it out")
        if self.sigma and self.kind == "sequence":
            raise ValueError("sigma smooths over tokens, and kind = 'sequence' chooses one depth for all; leave it out")
        if self.target == "gain" and self.kind not in ("halting", "certainty"):
            raise ValueError(f"target = 'gain' is for units of each block; {self.kind} chooses one depth: set 'depth'")
        return self


class RunConfig(_Table):
    """A whole configuration file."""

    data: DataConfig
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    joint: JointConfig | None = None
    frozen: FrozenConfig = FrozenConfig()
    predictors: list[PredictorConfig] = [PredictorConfig(target="gain")]

    @property
    def joint_predictors(self) -> list[PredictorConfig]:
        """Those that are trained with the trunk: the first, where there is a joint phase."""
        return self.predictors[:1] if self.joint else []

    @property
    def frozen_predictors(self) -> list[PredictorConfig]:
        """Those that are trained when the trunk is done."""
        return self.predictors[len(self.joint_predictors) :]

    @model_validator(mode="after")
    def _check_averaging(self) -> Self:
        kept = self.training.keep_checkpoints
        for name, phase in (("training", self.training), ("joint", self.joint)):
            if phase is not None and phase.average_checkpoints > kept:
                raise ValueError(
                    f"{name}.average_checkpoints = {phase.average_checkpoints} exceeds "
                    f"training.keep_checkpoints = {kept}"
                )
        return self

    @model_validator(mode="after")
    def _check_exits(self) -> Self:
        training = self.training
        if training.exits == "mixed" and (
            training.gradient_scaling or training.self_distillation or training.exit_weights != "uniform"
        ):
            raise ValueError(
                "training.gradient_scaling, self_distillation and exit_weights are of all exits of a token, and with "
                "exits = 'mixed' it has one; leave them out"
            )
        if training.exits == "last" and (
            training.gradient_scaling
            or training.self_distillation
            or training.exit_weights != "uniform"
            or self.predictors
        ):
            raise ValueError(
                "training.exits = 'last' trains one exit: leave out gradient_scaling, self_distillation and "
                "exit_weights, and set predictors = [], for there is nowhere to stop"
            )
        if training.exits != "mixed" and training.paths != 1:
            raise ValueError(f"training.paths = {training.paths} is for exits = 'mixed'")
        return self

    @model_validator(mode="after")
    def _check_predictors(self) -> Self:
        blocks = len(self.model.decoder.reaches)
        if blocks == 1 and self.predictors:
            raise ValueError("a decoder of one block has nowhere to stop; set predictors = []")
        if self.joint and not self.predictors:
            raise ValueError("[joint] trains the first of [[predictors]], and there is none")
        if any(predictor.kind == "certainty" for predictor in self.joint_predictors):
            raise ValueError(
                "[joint] trains the first of [[predictors]] with the trunk, and certainty has no part in it"
            )
        names = [predictor.name for predictor in self.predictors]
        for predictor in self.predictors:
            if names.count(predictor.name) > 1:
                raise ValueError(f"two predictors are called {predictor.name!r}; give each a name of its own")
            prices = predictor.prices
            if prices and (len(prices) != blocks or sorted(prices) != prices):
                raise ValueError(
                    f"predictors.prices = {prices}; expected {blocks} numbers, one per depth, none below the one before"
                )
        return self

    @model_validator(mode="after")
    def _check_depths(self) -> Self:
        blocks = len(self.model.decoder.reaches)
        for depth in self.training.valid_depths:
            if not 1 <= depth <= blocks:
                raise ValueError(f"training.valid_depths holds {depth}; the decoder has blocks 1 to {blocks}")
        return self
