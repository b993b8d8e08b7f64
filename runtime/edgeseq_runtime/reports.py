"""What export measured of a bundle, as its manifest tells it."""

from typing import Annotated

from pydantic import Field

from edgeseq_runtime.records import (
    ComputeTypeName,
    CountInt,
    FileName,
    Measure,
    PositiveInt,
    Record,
    Share,
)


class DepthQuality(Record):
    """What a depth policy gave on the validation set.

    Attributes:
        depth: The policy in full.
        bleu: BLEU, 0 to 100.
        chrf: chrF, 0 to 100.
        average_depth: Blocks used per generated token, EOS included.
        sentences: Size of the validation set.
    """

    depth: Annotated[str, Field(min_length=1, max_length=100)]
    bleu: Measure
    chrf: Measure
    average_depth: Measure
    sentences: PositiveInt


class ParityRow(Record):
    """One graph against its torch module.

    Attributes:
        graph: Its file.
        shapes: Numbers of rows, positions and so on that both were run with.
        max_abs_diff: Largest difference over all outputs, relative to an output's largest magnitude where
            that exceeds 1.
        tolerance: What the difference may be.
    """

    graph: FileName
    shapes: PositiveInt
    max_abs_diff: Measure
    tolerance: Measure


class DecodingParity(Record):
    """Whole decodes against torch, forced along torch's tokens and depths.

    Attributes:
        sentences: Sentences decoded.
        tokens: Tokens generated.
        decisions: Choices compared: the best token, and to stop or not after each block.
        disagreements: Choices that differ although torch's margin exceeded the tie margin.
        ties: Choices where torch's margin was below it; not counted as disagreements.
    """

    sentences: PositiveInt
    tokens: PositiveInt
    decisions: PositiveInt
    disagreements: CountInt
    ties: CountInt


class ParityReport(Record):
    """How far the exported graphs are from the torch modules they come from.

    Attributes:
        tie_margin: Margin below which a decision of torch counts as a tie.
        rows: One row per graph.
        decoding: The comparison of whole decodes.
    """

    tie_margin: Measure
    rows: list[ParityRow]
    decoding: DecodingParity


class ShortlistReport(Record):
    """What a vocabulary shortlist changes, measured on validation text when the bundle was made.

    Attributes:
        pairs: Sentence pairs of the training text that were aligned for it.
        sentences: Sentences of the validation text.
        coverage: Share of the pieces of the references, EOS included, that are candidates of their sentence.
        average_candidates: Candidates of a sentence, on average.
        changed: Share of translations at full depth that are others than without the shortlist.
        full_bleu: BLEU without the shortlist, at full depth.
        full_chrf: chrF without it.
        bleu: BLEU with it.
        chrf: chrF with it.
    """

    pairs: PositiveInt
    sentences: PositiveInt
    coverage: Share
    average_candidates: Measure
    changed: Share
    full_bleu: Measure
    full_chrf: Measure
    bleu: Measure
    chrf: Measure

    def describe(self) -> str:
        """One line for people."""
        return (
            f"shortlist on {self.sentences:,} sentences: {self.average_candidates:.0f} candidates on average, which "
            f"cover {self.coverage:.2%} of the references' pieces; {self.changed:.2%} of translations change, BLEU "
            f"{self.bleu:.2f} ({self.full_bleu:.2f} without), chrF {self.chrf:.2f} ({self.full_chrf:.2f})"
        )


class QuantisationReport(Record):
    """What fewer bits changed, measured on validation text when the bundle was made.

    Attributes:
        compute_type: Of the bundle's graphs.
        policy: The depth policy under which depths were compared.
        sentences: Sentences of the text.
        tokens: Tokens that float32 chose at full depth, along which the bundle's graphs were led.
        token_agreement: Share of them that are the bundle's choice as well.
        depth_changes: Share of float32's tokens under ``policy`` that the bundle would have stopped at
            another block.
        float32_bleu: BLEU of float32 at full depth.
        float32_chrf: chrF of float32 at full depth.
        bleu: BLEU of the bundle at full depth.
        chrf: chrF of the bundle at full depth.
    """

    compute_type: ComputeTypeName
    policy: str
    sentences: PositiveInt
    tokens: PositiveInt
    token_agreement: Share
    depth_changes: Share
    float32_bleu: Measure
    float32_chrf: Measure
    bleu: Measure
    chrf: Measure

    def describe(self) -> str:
        """One line for people."""
        return (
            f"{self.compute_type} against float32 on {self.sentences:,} sentences: BLEU {self.bleu:.2f} "
            f"({self.float32_bleu:.2f}), chrF {self.chrf:.2f} ({self.float32_chrf:.2f}) and "
            f"{self.token_agreement:.2%} of tokens the same at full depth; {self.depth_changes:.2%} stop elsewhere "
            f"at {self.policy}"
        )
