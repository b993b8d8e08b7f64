"""What one sentence costs, process start included: `edgeseq translate` and CTranslate2 in a script of a few lines.

CTranslate2 has an int8 Transformer of 6-6 blocks with random weights, of the width and vocabulary of the bundle. In
turn; medians of wall time, and the largest peak of memory.

    pip install -r benchmarks/peers/requirements.txt
    python benchmarks/peers/start_up.py int8.bundle
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

SENTENCE = "I am not going to the party tonight.\n"
FEED_FORWARD_DIM = 512
SCRIPT = """
import sys
import ctranslate2
import sentencepiece
pieces = sentencepiece.SentencePieceProcessor(sys.argv[2] + "/tokenizer.model")
translator = ctranslate2.Translator(sys.argv[1], compute_type="int8", inter_threads=1, intra_threads=1)
for line in sys.stdin:
    source = [f"piece{number}" for number in pieces.encode(line)] + ["</s>"]
    found = translator.translate_batch([source], beam_size=1, max_decoding_length=12, min_decoding_length=12)
    print(pieces.decode([int(piece[5:]) for piece in found[0].hypotheses[0] if piece.startswith("piece")]))
"""


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds from start to end, and peak memory in MiB."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stdin is not None
    process.stdin.write(SENTENCE)
    process.stdin.close()
    _, status, usage = os.wait4(process.pid, 0)
    elapsed = time.perf_counter() - started
    if status:
        raise click.ClickException(f"{command[0]} has failed")
    return elapsed, usage.ru_maxrss / 1024


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--rounds", type=int, default=9, show_default=True)
def main(bundle: Path, rounds: int) -> None:
    """Measures and prints the table; the module's description is the command's help."""
    with tempfile.TemporaryDirectory() as name:
        model = str(Path(name) / "ctranslate2")
        # In a process of its own: what torch needs would count as the memory of whatever is started from here.
        writing = multiprocessing.get_context("spawn").Process(target=write_model, args=(bundle, Path(model)))
        writing.start()
        writing.join()
        edgeseq = str(Path(sys.executable).with_name("edgeseq"))
        commands = {
            "edgeseq translate": [edgeseq, "translate", "--model", str(bundle)],
            "CTranslate2": [sys.executable, "-c", SCRIPT, model, str(bundle)],
        }
        found: dict[str, list[tuple[float, float]]] = {system: [] for system in commands}
        for number in range(rounds + 1):
            for system, command in commands.items():
                measured = measure(command)
                if number:
                    found[system].append(measured)
    click.echo("| system | seconds | peak memory, MiB |\n|---|---|---|")
    for system, values in found.items():
        seconds, peaks = zip(*values, strict=True)
        click.echo(f"| {system} | {statistics.median(seconds):.2f} | {max(peaks):.0f} |")


def write_model(bundle: Path, folder: Path) -> None:
    """Makes CTranslate2's model."""
    from ctranslate2_models import write_random_transformer
    from edgeseq_export.random_models import RandomSizes
    from edgeseq_runtime.bundle import load_bundle

    facts = load_bundle(bundle).manifest.model
    write_random_transformer(folder, RandomSizes(facts.dim, FEED_FORWARD_DIM, facts.vocab_size, 6, 6))


if __name__ == "__main__":
    main()
