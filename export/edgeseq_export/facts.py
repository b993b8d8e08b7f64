"""What the runtime has to know of a model, read off its configuration and weights."""

from __future__ import annotations

from edgeseq.config import ModelConfig
from edgeseq.models import Seq2Seq
from edgeseq_runtime.manifest import ModelFacts


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
        halting=config.halting,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        feed_forward_dim=config.decoder.feed_forward_dim,
        mixer=config.decoder.mixer,
        glu=config.decoder.glu,
        convolution_heads=config.decoder.convolution_heads,
    )
