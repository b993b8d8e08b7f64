"""A training run from configuration to `model.safetensors`: tokenizer, corpora, the trunk, depth predictors."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from edgeseq.config import PredictorConfig, RunConfig
from edgeseq.config_files import load_resolved_config, save_config
from edgeseq.data.corpus import ParallelCorpus, build_corpus, is_of_other_text
from edgeseq.data.text import read_parallel
from edgeseq.data.vocabulary import train_tokenizer
from edgeseq.errors import CheckpointError, ConfigError
from edgeseq.models import Seq2Seq, build_model
from edgeseq.models.builder import build_predictor
from edgeseq.training.checkpoints import (
    CHECKPOINTS_FOLDER,
    has_checkpoint,
    list_checkpoints,
    load_model,
    model_tensors,
    read_progress,
    save_model,
    take_weights,
)
from edgeseq.training.exit_cache import build_exit_cache
from edgeseq.training.frozen_predictors import fit_predictors
from edgeseq.training.losses import exit_weights
from edgeseq.training.objectives import AlignedExits, DecoderObjective, JointObjective, MixedExits
from edgeseq.training.predictor_loss import PredictorLoss
from edgeseq.training.trainer import Phase, Trainer
from edgeseq_runtime.atomic import recover, write_file
from edgeseq_runtime.tokenizer import Tokenizer

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.model"
MODEL_FILE = "model.safetensors"
EXIT_CACHE_FOLDER = "exit_states"

_SCHEDULE = ("epochs", "learning_rate", "schedule", "warmup_steps")
_OBJECTIVE = (
    "accumulation",
    "exits",
    "paths",
    "exit_weights",
    "gradient_scaling",
    "self_distillation",
    "label_smoothing",
    "clip_norm",
    "weight_decay",
    "adam_betas",
    "patience",
)

_LOGGER = logging.getLogger(__name__)


def train(config: RunConfig, run: Path, resume: bool) -> None:
    """Trains the trunk, then the depth predictors that were not trained with it.

    Args:
        config: everything.
        run: the run's folder; made if missing. Afterwards it holds config.json, tokenizer.model and
            model.safetensors, which is all that export needs.
        resume: go on with a run that was interrupted, or train other frozen predictors on one that was finished.

    Raises:
        EdgeseqError: configuration, data or checkpoint are at fault.
        KeyboardInterrupt: after a checkpoint was written.
    """
    device = _pick_device(config.training.device)
    _open_run(config, run, resume)
    start_from = None if has_checkpoint(run / CHECKPOINTS_FOLDER) else config.training.start_from
    _check_inputs(config, start_from)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    tokenizer = _prepare_tokenizer(config, run)
    train_corpus = _prepare_corpus(config, tokenizer, run, "train")
    valid_corpus = _prepare_corpus(config, tokenizer, run, "valid")
    torch.manual_seed(config.training.seed)
    model = build_model(config.model, tokenizer.vocab_size, config.joint_predictors).to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    _LOGGER.info("%s parameters", f"{parameters:,}")
    if start_from is not None:
        _start_from(Path(start_from), model, tokenizer)
    trainer = Trainer(run, model, tokenizer, train_corpus, valid_corpus, config.training, device)
    precision = str(trainer.precision).removeprefix("torch.")
    _LOGGER.info("training on %s in %s", device, precision)
    for phase in _phases(config):
        trainer.run_phase(phase, resume)
    if config.frozen_predictors:
        _train_frozen_predictors(config, run, model, train_corpus, trainer.precision)
    save_model(model, run / MODEL_FILE)
    _LOGGER.info("%s is ready for `edgeseq export`", run)


def load_run(run: Path) -> tuple[RunConfig, Tokenizer, Seq2Seq]:
    """Loads what a run produced, the model in evaluation mode.

    Raises:
        EdgeseqError: a file is missing, damaged, or does not fit.
    """
    config = load_resolved_config(run / CONFIG_FILE)
    _check_finished(run)
    tokenizer = Tokenizer(run / TOKENIZER_FILE)
    model = build_model(config.model, tokenizer.vocab_size, config.predictors)
    load_model(model, run / MODEL_FILE)
    return config, tokenizer, model.eval()


def _open_run(config: RunConfig, run: Path, resume: bool) -> None:
    stored = run / CONFIG_FILE
    checkpoints = run / CHECKPOINTS_FOLDER
    if resume or not has_checkpoint(checkpoints):  # else another process may be writing
        for folder in (run, run / "data", checkpoints):
            recover(folder)
    if has_checkpoint(checkpoints):
        if not resume:
            raise ConfigError(f"{run} holds a run already; give --resume to continue it, or another --out")
        old = load_resolved_config(stored)
        changed = _changes(old, config)
        if changed:
            raise CheckpointError(
                f"{stored} has other values of {', '.join(changed)} than the configuration, and the run cannot go on "
                "with them; continue with the old ones, or start a new run with another --out"
            )
        late = _late_changes(old, config, checkpoints)
        if late:
            raise CheckpointError(
                f"{stored} has other values of {', '.join(late)} than the configuration, and what they are for is "
                f"done; continue with the old ones, or start a new run from this one's weights with another --out and "
                f"training.start_from = '{run}'"
            )
        _check_text(config, run)
        if old != config:  # its weights are of the old one; they are made again from the checkpoints
            (run / MODEL_FILE).unlink(missing_ok=True)
    elif (run / MODEL_FILE).exists():
        raise ConfigError(
            f"{run} holds a finished run whose checkpoints are gone, so there is nothing to resume; give another "
            f"--out, and training.start_from = '{run}' to begin with its weights"
        )
    run.mkdir(parents=True, exist_ok=True)
    write_file(stored, save_config(config))


def _check_inputs(config: RunConfig, start_from: str | None) -> None:
    """Reads what is wanted later, since that it is missing should not come up after all training text is processed."""
    for _ in read_parallel(Path(config.data.valid_src), Path(config.data.valid_tgt)):
        pass
    if start_from is None:
        return
    other, dim = Path(start_from), config.model.dim
    other_dim = load_resolved_config(other / CONFIG_FILE).model.dim
    if other_dim != dim:  # of all its weights only some biases would fit
        raise ConfigError(f"training.start_from = '{other}' has dim = {other_dim} and this model {dim}; set model.dim")
    _check_finished(other)


def _check_finished(run: Path) -> None:
    if not (run / MODEL_FILE).exists():
        raise CheckpointError(
            f"there is no {run / MODEL_FILE}, so this run is not finished: "
            f"`edgeseq train CONFIG --out {run} --resume` goes on with it"
        )


def _check_text(config: RunConfig, run: Path) -> None:
    """Refuses to go on with other text: checkpoints say how many batches of it have been seen, not which."""
    data = config.data
    tokenizer = Tokenizer(data.tokenizer or run / TOKENIZER_FILE)
    if is_of_other_text(Path(data.src), Path(data.tgt), tokenizer, data.max_pieces, run / "data" / "train"):
        raise CheckpointError(
            f"{data.src} and {data.tgt} are not the text that {run} was begun with, or the tokenizer is not that one; "
            "continue with the old ones, or start a new run with another --out"
        )


def _changes(old: RunConfig, new: RunConfig) -> list[str]:
    """Names what decides the weights' shapes or the order of the data, and differs."""
    pairs = {
        "model": (old.model, new.model),
        "data.vocab_size": (old.data.vocab_size, new.data.vocab_size),
        "data.max_pieces": (old.data.max_pieces, new.data.max_pieces),
        "training.seed": (old.training.seed, new.training.seed),
        "training.batch_tokens": (old.training.batch_tokens, new.training.batch_tokens),
        "training.start_from": (old.training.start_from, new.training.start_from),
        "the predictor that is trained with the trunk": (old.joint_predictors, new.joint_predictors),
    }
    return [name for name, (before, after) in pairs.items() if before != after]


def _late_changes(old: RunConfig, new: RunConfig, checkpoints: Path) -> list[str]:
    """Names what differs and would change nothing any more, since the phases that it is for are finished."""
    exits_done, joint_done = (_is_finished(checkpoints, phase) for phase in ("exits", "joint"))
    late = [("training", key) for key in _SCHEDULE if exits_done]
    late += [("training", key) for key in _OBJECTIVE if exits_done and (joint_done or old.joint is None)]
    late += [("joint", key) for key in (*_SCHEDULE, "alpha") if joint_done]
    return [
        f"{table}.{key}"
        for table, key in late
        if getattr(getattr(old, table), key) != getattr(getattr(new, table), key, None)
    ]


def _is_finished(checkpoints: Path, phase: str) -> bool:
    existing = list_checkpoints(checkpoints, phase)
    return bool(existing) and read_progress(existing[-1]).finished


def _pick_device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("training.device is 'cuda', but torch finds no CUDA device here; use 'cpu' or 'auto'")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def _prepare_tokenizer(config: RunConfig, run: Path) -> Tokenizer:
    path = run / TOKENIZER_FILE
    if config.data.tokenizer is not None:
        write_file(path, Tokenizer(config.data.tokenizer).model_bytes)
    elif not has_checkpoint(run / CHECKPOINTS_FOLDER):  # else the text and the number of pieces are as they were
        write_file(path, _first_tokenizer(config))
    return Tokenizer(path)


def _first_tokenizer(config: RunConfig) -> bytes:
    if config.training.start_from is not None:
        return Tokenizer(Path(config.training.start_from) / TOKENIZER_FILE).model_bytes
    _LOGGER.info("training a tokenizer of %d pieces", config.data.vocab_size)
    pairs = read_parallel(Path(config.data.src), Path(config.data.tgt))
    sentences: Iterator[str] = itertools.chain.from_iterable(pairs)
    return train_tokenizer(sentences, config.data.vocab_size)


def _start_from(other: Path, model: Seq2Seq, tokenizer: Tokenizer) -> None:
    """Takes the weights of another run that fit, and tells which parts of the model are left at random.

    Raises:
        ConfigError: its embeddings stand for other pieces.
    """
    if Tokenizer(other / TOKENIZER_FILE).model_bytes != tokenizer.model_bytes:
        raise ConfigError(
            f"training.start_from = '{other}' has another tokenizer than this run, so its embeddings would stand for "
            "other pieces; leave out data.tokenizer, and its own is taken"
        )
    new = take_weights(model, other / MODEL_FILE)
    parameters = model_tensors(model)
    taken = sum(tensor.numel() for tensor in parameters.values()) - sum(parameters[name].numel() for name in new)
    modules = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name).rpartition(".")[0] for name in new)
    _LOGGER.info("%s of them start from %s; at random: %s", f"{taken:,}", other, ", ".join(modules) or "none")


def _prepare_corpus(config: RunConfig, tokenizer: Tokenizer, run: Path, split: str) -> ParallelCorpus:
    data = config.data
    src, tgt = (data.src, data.tgt) if split == "train" else (data.valid_src, data.valid_tgt)
    (run / "data").mkdir(exist_ok=True)
    corpus = build_corpus(Path(src), Path(tgt), tokenizer, data.max_pieces, run / "data" / split)
    _LOGGER.info("%s: %s", split, corpus.counts.describe())
    return corpus


def _phases(config: RunConfig) -> Iterator[Phase]:
    exits = _decoder_objective(config)
    yield Phase("exits", exits, config.training)
    if config.joint is not None:
        (predictor,) = config.joint_predictors
        joint = JointObjective(exits, predictor.name, _predictor_loss(config, predictor), config.joint.alpha)
        yield Phase("joint", joint, config.joint)


def _decoder_objective(config: RunConfig) -> DecoderObjective:
    training = config.training
    if training.exits == "mixed":
        return MixedExits(training.paths, training.label_smoothing)
    blocks = len(config.model.decoder.reaches)
    weights = [0.0] * (blocks - 1) + [1.0] if training.exits == "last" else exit_weights(training.exit_weights, blocks)
    return AlignedExits(
        weights,
        training.exits == "sampled",
        training.label_smoothing,
        training.gradient_scaling,
        training.self_distillation,
    )


def _predictor_loss(config: RunConfig, predictor: PredictorConfig) -> PredictorLoss:
    blocks = len(config.model.decoder.reaches)
    prices = predictor.prices or [float(depth) for depth in range(1, blocks + 1)]
    return PredictorLoss(predictor.oracle, predictor.target, predictor.sigma, predictor.depth_penalty, prices)


def _train_frozen_predictors(
    config: RunConfig, run: Path, model: Seq2Seq, corpus: ParallelCorpus, precision: torch.dtype
) -> None:
    """Trains the predictors that were not trained with the trunk, and puts them into the model."""
    _LOGGER.info("computing exit states of %s target tokens", f"{config.frozen.tokens:,}")
    cache = build_exit_cache(
        model,
        corpus,
        run / EXIT_CACHE_FOLDER,
        tokens=config.frozen.tokens,
        batch_tokens=config.training.batch_tokens,
        seed=config.training.seed,
        precision=precision,
    )
    predictors = {
        predictor.name: (build_predictor(config.model, predictor), _predictor_loss(config, predictor))
        for predictor in config.frozen_predictors
    }
    fit_predictors(cache, predictors, config.frozen.epochs, config.frozen.learning_rate, config.training.seed)
    for name, (predictor, _) in predictors.items():
        model.predictors[name] = predictor
