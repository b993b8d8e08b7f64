"""`edgeseq distill`: a student learns from its teacher's translations."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import click

from edgeseq.cli.configuration import FILE, configuration_options, limit_kernel_cache, resolve_config
from edgeseq.cli.options import length_penalty_option, threads_option
from edgeseq.cli.streams import log_to_stderr
from edgeseq.cli.translators import open_translator

_NAME_DIGITS = 12


@click.command(
    epilog="Example: edgeseq distill student.toml --teacher runs/teacher --out runs/student --n-best 4 --select closest"
)
@click.argument("config", type=FILE)
@click.option(
    "--teacher",
    type=FILE,
    required=True,
    help="A bundle, or a finished training run, which is exported into RUN first.",
)
@click.option("--out", "run", metavar="RUN", type=FILE, required=True, help="Folder of the student's run.")
@click.option("--resume", is_flag=True, help="Continue an interrupted run: its translation, then its training.")
@configuration_options
@click.option(
    "--depth", default="full", show_default=True, metavar="POLICY", help="The teacher's depth policy, as for translate."
)
@click.option(
    "--beam-size",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    metavar="N",
    help="The teacher's hypotheses per sentence; 1 is greedy search.",
)
@click.option(
    "--n-best",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Hypotheses per line to select from, at most the beam size.",
)
@length_penalty_option
@click.option(
    "--select",
    type=click.Choice(["best", "closest"]),
    default="best",
    show_default=True,
    help="best: each of the n best becomes a pair. closest: only the one with the highest chrF against the reference.",
)
@click.option(
    "--original/--no-original",
    default=True,
    show_default=True,
    help="Whether the reference pairs stay in the training text, beside the teacher's.",
)
@click.option(
    "--length-ratio",
    type=(click.FloatRange(min=0), click.FloatRange(min=0)),
    default=(0.33, 3.0),
    show_default=True,
    metavar="MIN MAX",
    help="Leave out translations with fewer or more pieces for each piece of the source.",
)
@click.option(
    "--min-score",
    type=click.FloatRange(max=0),
    metavar="X",
    help="Leave out translations whose mean log-probability is below X, e.g. -1.5.  [default: keep all]",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    metavar="N",
    help="Sentences that the teacher decodes together.",
)
@threads_option
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the teacher computes; auto takes CUDA where the installed onnxruntime has it. Training goes where "
    "training.device says.",
)
def command(
    config: Path,
    teacher: Path,
    run: Path,
    resume: bool,
    overrides: tuple[str, ...],
    depth: str,
    beam_size: int,
    n_best: int,
    length_penalty: float,
    select: Literal["best", "closest"],
    original: bool,
    length_ratio: tuple[float, float],
    min_score: float | None,
    batch_size: int,
    threads: int,
    device: str,
    **files: Path | None,
) -> None:
    """Train the student that CONFIG describes on what TEACHER makes of its training text.

    Sequence-level knowledge distillation (Kim and Rush, 2016): the teacher translates the source side, RUN/distilled
    gets the pairs, and the student is trained on them as by `edgeseq train`. Left out, and counted in
    RUN/distilled/counts.json: blank source lines, those of more than data.max_pieces, and translations that are
    empty, did not end, have an odd length or a low score, or repeat the reference pair. Ctrl-C or worse loses at most
    one part of the translations; --resume goes on from there.
    """
    if select == "closest" and n_best == 1:
        raise click.UsageError("--select closest needs hypotheses to choose from: give --n-best 2 or more")
    shortest, longest = length_ratio
    if shortest > longest:
        raise click.UsageError(f"--length-ratio {shortest:g} {longest:g} leaves nothing: give the smaller number first")
    limit_kernel_cache()
    # First, though it is needed last: a missing torch should not come up after hours of translation.
    from edgeseq.training.run import TOKENIZER_FILE, train

    log_to_stderr()
    from edgeseq.distillation.run import check_run, distill
    from edgeseq.distillation.selection import Selection
    from edgeseq_runtime import BeamOptions

    beam = BeamOptions(beam_size, length_penalty, n_best)
    selection = Selection(select, original, shortest, longest, min_score)
    student = resolve_config(config, overrides, files)
    training_begun = (run / TOKENIZER_FILE).exists()  # the first thing that training makes of the text
    check_run(run, resume=resume, training_begun=training_begun)
    with ExitStack() as stack:
        translator = open_translator(stack, _bundle_of(teacher, run), depth, device, threads)
        student = distill(student, translator, run, beam, selection, batch_size, training_begun=training_begun)
    train(student, run, resume)


def _bundle_of(teacher: Path, run: Path) -> Path:
    """The teacher's bundle: itself, or what a training run is exported to, once for each state of its model."""
    from edgeseq.errors import CheckpointError
    from edgeseq.training.run import MODEL_FILE
    from edgeseq_runtime.bundle import file_sha256
    from edgeseq_runtime.manifest import MANIFEST_FILE

    if (teacher / MANIFEST_FILE).exists():
        return teacher
    model = teacher / MODEL_FILE
    if not model.exists():
        raise CheckpointError(
            f"the teacher {teacher} is neither a bundle (it has no {MANIFEST_FILE}) nor a finished training run (it "
            f"has no {MODEL_FILE})"
        )
    bundle = run / f"teacher-{file_sha256(model)[:_NAME_DIGITS]}.bundle"
    if not bundle.exists():
        from edgeseq_export import export_run

        export_run(teacher, bundle, validation=None)
    return bundle
