"""The building blocks: operators and layers that take plain arguments and never see a configuration."""

from edgeseq.modules.attention import CrossAttention
from edgeseq.modules.blocks import ConvolutionUnit, DecoderBlock, EncoderBlock, FeedForward, ResidualNorm
from edgeseq.modules.convolution import DynamicConv, LightweightConv
from edgeseq.modules.embedding import TokenEmbedding
from edgeseq.modules.exits import ExitHeads
from edgeseq.modules.predictors import DepthPredictor, HaltingUnits, SentenceDepth, TokenDepth

__all__ = [
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
    "SentenceDepth",
    "TokenDepth",
    "TokenEmbedding",
]
