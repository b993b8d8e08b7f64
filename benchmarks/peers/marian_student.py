r"""Trains a student of Marian on one or more processor cores: self-attention below, SSRU decoder blocks above.

Text, pieces, width, feed-forward, heads and encoder blocks are those of a training run of edgeseq. edgeseq's own
Transformers cannot be converted: Marian's decoder begins with a vector of zeros, edgeseq's with one that is learnt, and
without it a model translates nonsense.

    pip install -r benchmarks/peers/requirements-marian.txt
    python benchmarks/peers/marian_student.py runs/6-6 --out runs/marian-6-2 --epochs 9 --threads 2
    python benchmarks/peers/real_models.py --rival marian-int8 runs/marian-6-2 --src test.en --ref test.de --out fight
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click

from edgeseq.config import RunConfig
from edgeseq.config_files import load_resolved_config
from edgeseq.data.text import read_parallel
from edgeseq_runtime.tokenizer import Tokenizer
from marian_system import MODEL, TOKENIZER, VOCABULARY


def write_vocabulary(tokenizer: Tokenizer, path: Path) -> None:
    """The tokenizer's pieces as YAML (JSON is YAML), the two first that Marian wants to be first."""
    pieces = tokenizer.pieces(list(range(tokenizer.vocab_size)))
    names = ["</s>", "<unk>", *(piece for piece in pieces if piece not in {"</s>", "<unk>"})]
    path.write_text(json.dumps({name: number for number, name in enumerate(names)}, indent=0), encoding="utf-8")


def options_of(config: RunConfig, decoder_blocks: int, epochs: int, threads: int) -> list[str]:
    """What Marian is told, without files; the rest is as in Marian's own recipe of a Transformer."""
    model = config.model
    return [
        f"--type transformer --dim-emb {model.dim} --transformer-heads {model.attention_heads}",
        f"--enc-depth {len(model.encoder.windows)} --transformer-dim-ffn {model.encoder.feed_forward_dim}",
        f"--dec-depth {decoder_blocks} --transformer-decoder-autoreg rnn --dec-cell ssru --tied-embeddings-all",
        "--transformer-postprocess dan --transformer-dropout 0.1 --label-smoothing 0.1",
        "--learn-rate 0.0006 --lr-warmup 1000 --lr-decay-inv-sqrt 1000 --lr-report",
        "--optimizer-params 0.9 0.98 1e-09 --clip-norm 0 --exponential-smoothing --sync-sgd",
        f"--mini-batch 1000 --mini-batch-words 4000 --maxi-batch 100 --max-length {config.data.max_pieces}",
        f"--after-epochs {epochs} --disp-freq 100 --save-freq 500 --seed 1 --overwrite",
        f"--cpu-threads {threads} --workspace 1000",
    ]


@click.command(help=__doc__)
@click.argument("run", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the student.")
@click.option("--decoder-blocks", type=int, default=2, show_default=True)
@click.option("--epochs", type=int, default=9, show_default=True)
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--lines", type=int, help="Train on the first so many only, to try it out.")
def main(run: Path, out: Path, decoder_blocks: int, epochs: int, threads: int, lines: int | None) -> None:
    """Trains; goes on with what is there; the module's description is the command's help."""
    import pymarian

    config = load_resolved_config(run / "config.json")
    tokenizer = Tokenizer(run / "tokenizer.model")
    out.mkdir(parents=True, exist_ok=True)
    (out / TOKENIZER).write_bytes(tokenizer.model_bytes)
    write_vocabulary(tokenizer, out / VOCABULARY)
    with tempfile.TemporaryDirectory() as name:
        texts = [Path(name) / "train.src", Path(name) / "train.tgt"]
        columns = zip(*list(read_parallel(Path(config.data.src), Path(config.data.tgt)))[:lines], strict=True)
        for path, column in zip(texts, columns, strict=True):
            pieces = (" ".join(tokenizer.pieces(tokenizer.encode(line))) for line in column)
            path.write_text("".join(f"{line}\n" for line in pieces), encoding="utf-8")
        files = [
            f"--model {out / MODEL} --vocabs {out / VOCABULARY} {out / VOCABULARY}",
            f"--train-sets {texts[0]} {texts[1]} --tempdir {name} --log {out / 'train.log'}",
        ]
        pymarian.Trainer(" ".join(files + options_of(config, decoder_blocks, epochs, threads))).train()


if __name__ == "__main__":
    main()
