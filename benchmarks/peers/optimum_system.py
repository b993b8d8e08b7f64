"""optimum-onnx: the Transformer as a Hugging Face model, exported and driven by optimum.

Pegasus has the form of edgeseq's Transformer: layer norm before each branch and after each stack, fixed positions, one
table. Marian's class in transformers normalises after each branch, and cannot hold these weights.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cached_search import batches
from edgeseq_runtime.search import output_limit
from edgeseq_runtime.tokenizer import BOS_ID, EOS_ID, PAD_ID, Tokenizer
from translations import Translate, Translated

if TYPE_CHECKING:
    from torch import nn

    from edgeseq.models import Seq2Seq
    from edgeseq.modules import CrossAttention, DecoderBlock, EncoderBlock, SelfAttention

GRAPHS = ("encoder_model", "decoder_model", "decoder_with_past_model")


def write(run: Path, folder: Path, compute_type: Literal["int8", "float32"]) -> None:
    """Exports a run's model, and quantises its graphs."""
    from optimum.onnxruntime import ORTModelForSeq2SeqLM, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    from transformer_modules import load_transformer

    tokenizer, model = load_transformer(run)
    with tempfile.TemporaryDirectory() as name:
        pretrained, exported = Path(name) / "pretrained", Path(name) / "exported"
        _pegasus(model).save_pretrained(pretrained)
        # One decoder of both would be an `If`, whose products quantisation does not reach.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer, about shapes that do not change
            ORTModelForSeq2SeqLM.from_pretrained(pretrained, export=True, use_merged=False).save_pretrained(exported)
        if compute_type == "int8":
            options = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False)
            for graph in GRAPHS:
                quantizer = ORTQuantizer.from_pretrained(exported, file_name=f"{graph}.onnx")
                quantizer.quantize(options, save_dir=folder, file_suffix="")
        else:
            exported.rename(folder)
    (folder / "tokenizer.model").write_bytes(tokenizer.model_bytes)


def load(folder: Path, threads: int) -> Translate:
    """Makes the graphs ready."""
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForSeq2SeqLM

    torch.set_num_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    model = ORTModelForSeq2SeqLM.from_pretrained(folder, use_merged=False, session_options=options)
    tokenizer = Tokenizer(folder / "tokenizer.model")

    def translate(lines: list[str], batch_size: int, beam_size: int) -> list[Translated]:
        sources = [[*tokenizer.encode(line), EOS_ID] for line in lines]
        found: list[list[int]] = [[] for _ in lines]
        for batch in batches([len(source) for source in sources], batch_size):
            chosen = [sources[index] for index in batch]
            longest = max(map(len, chosen))
            padded = torch.tensor([[*source, *[PAD_ID] * (longest - len(source))] for source in chosen])
            outputs = model.generate(
                padded,
                attention_mask=(padded != PAD_ID).long(),
                num_beams=beam_size,
                do_sample=False,
                max_new_tokens=output_limit(longest),
            )
            for index, ids in zip(batch, outputs.tolist(), strict=True):
                found[index] = [token for token in ids if token not in (PAD_ID, BOS_ID, EOS_ID)]
        return [Translated(tokenizer.decode(tokens), len(tokens)) for tokens in found]

    return translate


def _pegasus(model: Seq2Seq) -> Any:
    """The same weights under the other names."""
    import torch
    from transformers import PegasusConfig, PegasusForConditionalGeneration

    from edgeseq.modules.embedding import sinusoid
    from transformer_modules import POSITIONS, decoder_blocks, encoder_blocks, mixer_of

    encoder, decoder = encoder_blocks(model), decoder_blocks(model)
    blocks: list[EncoderBlock | DecoderBlock] = [*encoder, *decoder]
    table = model.decoder.embedding.table.weight
    heads, feed_forward_dim = mixer_of(encoder[0]).heads, encoder[0].feed_forward.expand.out_features
    config = PegasusConfig(
        vocab_size=table.shape[0],
        d_model=table.shape[1],
        max_position_embeddings=POSITIONS,
        encoder_layers=len(encoder),
        decoder_layers=len(decoder),
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=feed_forward_dim,
        decoder_ffn_dim=feed_forward_dim,
        activation_function="relu",
        scale_embedding=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        decoder_start_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        forced_eos_token_id=None,
    )
    pegasus = PegasusForConditionalGeneration(config)
    taken = pegasus.model
    with torch.no_grad():
        taken.shared.weight.copy_(table)
        for stack in (taken.encoder, taken.decoder):
            stack.embed_positions.weight.copy_(sinusoid(torch.arange(POSITIONS), table.shape[1]))
        _take(taken.encoder.layer_norm, model.encoder.norm)
        _take(taken.decoder.layer_norm, decoder[-1].exit_norm)
        for layer, block in zip((*taken.encoder.layers, *taken.decoder.layers), blocks, strict=True):
            _take_attention(layer.self_attn, mixer_of(block))
            _take(layer.self_attn_layer_norm, block.mixer_norm.norm)
            _take(layer.fc1, block.feed_forward.expand)
            _take(layer.fc2, block.feed_forward.contract)
            _take(layer.final_layer_norm, block.feed_forward_norm.norm)
        for layer, block in zip(taken.decoder.layers, decoder, strict=True):
            _take_attention(layer.encoder_attn, block.cross_attention)
            _take(layer.encoder_attn_layer_norm, block.cross_norm.norm)
    return pegasus


def _take_attention(layer: Any, attention: SelfAttention | CrossAttention) -> None:
    _take(layer.q_proj, attention.query_projection)
    _take(layer.k_proj, attention.key_projection)
    _take(layer.v_proj, attention.value_projection)
    _take(layer.out_proj, attention.output_projection)


def _take(layer: Any, of: nn.Module) -> None:
    weights = dict(of.named_parameters())
    layer.weight.copy_(weights["weight"])
    if "bias" in weights:
        layer.bias.copy_(weights["bias"])
    else:
        layer.bias.zero_()
