"""What the runtime has to know of a model, read off its configuration and weights."""

from __future__ import annotations

from edgeseq.config import ModelConfig, PredictorConfig
from edgeseq.models import Seq2Seq
from edgeseq.modules import CertaintyUnits
from edgeseq_runtime.manifest import ModelFacts, PredictorEntry


def model_facts(config: ModelConfig, model: Seq2Seq, vocab_size: int) -> ModelFacts:
    """Gathers the manifest's facts of a model."""
    return ModelFacts(
        dim=config.dim,
        heads=config.attention_heads,
        vocab_size=vocab_size,
        encoder_blocks=len(config.encoder.reaches),
        decoder_reaches=list(config.decoder.reaches),
        head=config.head,
        norm=config.norm,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        feed_forward_dim=config.decoder.feed_forward_dim,
        mixer=config.decoder.mixer,
        glu=config.decoder.glu,
        convolution_heads=config.decoder.convolution_heads,
    )


def predictor_entry(config: PredictorConfig, model: Seq2Seq, *, joint: bool) -> PredictorEntry:
    """Gathers the manifest's facts of a depth predictor.

    Args:
        config: its table of the configuration.
        model: has it.
        joint: whether it was trained together with the trunk.
    """
    terms = {"sigma": config.sigma, "lambda": config.depth_penalty}
    described = ", ".join(f"{name} {value:g}" for name, value in terms.items())
    prices = f" times {config.prices}" if config.prices else ""
    trunk = "joint" if joint else "frozen"
    predictor = model.predictor(config.name)
    if isinstance(predictor, CertaintyUnits):
        rows, hidden_dim = predictor.contract_weight.shape
    else:
        rows, hidden_dim = len(predictor.get_parameter("weight")), 0
    return PredictorEntry(
        name=config.name,
        kind=config.kind,
        rows=rows,
        hidden_dim=hidden_dim,
        training=f"{config.oracle}, {described}{prices}, target {config.target}, {trunk} trunk",
    )
