"""The building blocks: operators and layers that take plain arguments and never see a configuration."""

from edgeseq.modules.attention import CrossAttention, SelfAttention
from edgeseq.modules.blocks import ConvolutionUnit, DecoderBlock, EncoderBlock, FeedForward, ResidualNorm
from edgeseq.modules.convolution import DynamicConv, LightweightConv
from edgeseq.modules.embedding import TokenEmbedding
from edgeseq.modules.exits import ExitHeads
from edgeseq.modules.mixing import TokenMixer
from edgeseq.modules.predictors import CertaintyUnits, DepthPredictor, HaltingUnits, SentenceDepth, TokenDepth

__all__ = [
    "CertaintyUnits",
    "ConvolutionUnit",
    "CrossAttention",
    "DecoderBlock",
    "DepthPredictor",
    "DynamicConv",
    "EncoderBlock",
    "ExitHeads",
    "FeedForward",
    "HaltingUnits",
    "LightweightConv",
    "ResidualNorm",
    "SelfAttention",
    "SentenceDepth",
    "TokenDepth",
    "TokenEmbedding",
    "TokenMixer",
]
