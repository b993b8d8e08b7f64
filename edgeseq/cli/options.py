"""Options that several commands have, and that mean the same in each."""

from __future__ import annotations

from collections.abc import Iterable

import click
from click.core import ParameterSource

threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Processor cores to use: so many processes share the sentences, each with one thread and a batch of its own.",
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to compute; auto takes CUDA where the installed onnxruntime has it.",
)
shortlist_option = click.option(
    "--shortlist",
    is_flag=True,
    help="Choose tokens from each sentence's shortlist of pieces only: faster where the vocabulary is large, and some "
    "translations change. The bundle must have been exported with --shortlist; edgeseq inspect says what it changes.",
)
beam_size_option = click.option(
    "--beam-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Hypotheses kept per sentence; 1 is greedy search.",
)
length_penalty_option = click.option(
    "--length-penalty",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="A",
    help="Hypotheses are ranked by log-probability / length ** A.",
)


def refuse_given(names: Iterable[str], reason: str) -> None:
    """Refuse options of the command that is running, by their Python names, where the user has given them.

    Raises:
        UsageError: One was given, though it has no say.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{parameter.opts[0]} {reason}")
