"""The configuration of a training run: one TOML file, typed and strict; every mistake is reported at once.

Precedence: defaults < file < `--set key=value` < named options. The resolved configuration is stored with the
run. Builders read it; modules never do.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgeseq.errors import ConfigError


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
    halting: Literal["none", "shared", "per_block"] = "per_block"
    """Halting units: none, one for all blocks (as the paper prints it), or one per block."""
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
        if len(self.decoder.reaches) == 1 and self.halting != "none":
            raise ValueError('a decoder of one block has nowhere to stop; set halting = "none"')
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
    """`[training]`: phase 1, aligned training of all exits (Elbayad et al., section 2.2.1)."""

    seed: int = 1
    """Of weights, dropout and data order."""
    batch_tokens: int = Field(4096, ge=1)
    """Positions per batch on its longer side, at most; almost none of them are padding."""
    accumulation: int = Field(1, ge=1)
    """Batches per optimiser step."""
    exits: Literal["all", "sampled"] = "sampled"
    """Exits in the loss of each step: all, or the last and one drawn from the others, weighted so that the
    expected gradient is the same."""
    exit_weights: Literal["uniform", "n", "sqrt_n", "inverse_sqrt_n", "inverse_n"] = "uniform"
    """Weight w_n of exit n in the loss (table 1a of the paper)."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Share of the target distribution that is spread evenly over the vocabulary."""
    clip_norm: float = Field(1.0, gt=0)
    """Greatest norm of the gradient."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled, on matrices only."""
    adam_betas: tuple[float, float] = (0.9, 0.98)
    """Decay of the moments."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of matrix products, by autocast; weights and sums stay float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA where torch finds it."""
    threads: int = Field(0, ge=0)
    """CPU threads; 0: all cores."""
    valid_interval: int = Field(1000, ge=1)
    """Steps between validations; each writes a checkpoint."""
    valid_sentences: int = Field(500, ge=1)
    """Validation pairs that are translated for BLEU; the loss is over all."""
    valid_depths: list[int] = []
    """Depths at which BLEU is measured; empty: the first, the middle and the last."""
    patience: int = Field(0, ge=0)
    """Stop after so many validations without a better loss at full depth; 0: never."""
    keep_checkpoints: int = Field(5, ge=1)
    """Newest checkpoints that stay on disk."""


class HaltingConfig(ScheduleConfig):
    """`[halting]`: phase 2, halting units against an oracle (Elbayad et al., section 3)."""

    epochs: float = Field(1.0, gt=0)
    """Passes over the training data."""
    oracle: Literal["likelihood", "correctness", "agreement"] = "agreement"
    """What makes a depth good: the log-likelihood of the reference token, whether that is the argmax, or whether
    the argmax is that of the last block."""
    target: Literal["depth", "gain"] = "gain"
    """What the units learn of the oracle: its one depth, by the distribution of depths as in the paper, or each by
    itself whether any later block is worth its price."""
    sigma: float = Field(0.0, ge=0)
    """Width of the kernel that smooths over neighbouring tokens; 0: the token alone."""
    depth_penalty: float = Field(0.05, ge=0)
    """λ: what one more block must gain to be worth it, in the oracle's own units."""
    trunk: Literal["frozen", "joint"] = "frozen"
    """Train the units alone, or everything, L = L_dec + α · L_exit, as the paper does."""
    alpha: float = Field(0.1, gt=0)
    """Weight of the exit loss in joint training."""
    learning_rate: float = Field(3e-3, gt=0)
    """The peak."""


class RunConfig(_Table):
    """A whole configuration file."""

    data: DataConfig
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    halting: HaltingConfig = HaltingConfig()

    @model_validator(mode="after")
    def _check_averaging(self) -> Self:
        kept = self.training.keep_checkpoints
        for name, averaged in (
            ("training", self.training.average_checkpoints),
            ("halting", self.halting.average_checkpoints),
        ):
            if averaged > kept:
                raise ValueError(f"{name}.average_checkpoints = {averaged} exceeds training.keep_checkpoints = {kept}")
        return self

    @model_validator(mode="after")
    def _check_depths(self) -> Self:
        blocks = len(self.model.decoder.reaches)
        for depth in self.training.valid_depths:
            if not 1 <= depth <= blocks:
                raise ValueError(f"training.valid_depths holds {depth}; the decoder has blocks 1 to {blocks}")
        return self


def load_config(path: Path, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Reads a TOML file and applies overrides.

    Args:
        path: the file. Paths inside it are taken relative to its folder.
        overrides: dotted key → value, e.g. {"model.dim": 128}.

    Returns:
        The configuration, its paths absolute.

    Raises:
        ConfigError: the file cannot be read or parsed, or any value is wrong; all mistakes are listed.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    data = table.get("data")
    if isinstance(data, dict):
        for key in ("src", "tgt", "valid_src", "valid_tgt", "tokenizer"):
            if isinstance(data.get(key), str):
                data[key] = str((path.parent / data[key]).resolve())
    for key, value in (overrides or {}).items():
        _set_dotted(table, key, value)
    return _validate(table, str(path))


def parse_override(text: str) -> tuple[str, Any]:
    """Splits `key=value`; the value is read as TOML, and as a plain string where it is no TOML.

    Raises:
        ConfigError: there is no "=" or no key.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"--set {text!r} is not key=value; example: --set model.dim=128")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def save_config(config: RunConfig) -> bytes:
    """Serialises a resolved configuration as JSON."""
    return (json.dumps(config.model_dump(mode="json"), indent=2) + "\n").encode()


def load_resolved_config(path: Path) -> RunConfig:
    """Reads what `save_config` wrote.

    Raises:
        ConfigError: the file is missing, no JSON, or does not fit this version.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; is it the folder of a training run?") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    return _validate(table, str(path))


def _validate(table: Any, name: str) -> RunConfig:
    try:
        # JSON has no tuples; in TOML and JSON alike an array stands for one.
        return RunConfig.model_validate_json(json.dumps(table, default=str))
    except ValidationError as error:
        lines = []
        for mistake in error.errors(include_url=False):
            where = ".".join(str(part) for part in mistake["loc"]) or "configuration"
            message = mistake["msg"].removeprefix("Value error, ")
            if mistake["type"] == "extra_forbidden":
                message = f"unknown key; {_known_keys(mistake['loc'])}"
            elif not isinstance(mistake["input"], dict):
                message += f", got {mistake['input']!r}"
            lines.append(f"  {where}: {message}")
        raise ConfigError(f"{name} has {len(lines)} mistake(s):\n" + "\n".join(lines)) from error


def _known_keys(location: tuple[int | str, ...]) -> str:
    table: type[BaseModel] = RunConfig
    for part in location[:-1]:
        annotation = table.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        table = annotation
    return "known here: " + ", ".join(table.model_fields)


def _set_dotted(table: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        child = table.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"cannot set {key}: {parent} is a value, not a table")
        table = child
    table[leaf] = value
