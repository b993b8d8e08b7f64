"""What of a text is translated, and which texts are translated together: bounds on memory, whatever the input."""

import itertools
from collections.abc import Iterator, Sequence

from edgeseq_runtime.state import padded_length
from edgeseq_runtime.tokenizer import EOS_ID, Tokenizer

MAX_SOURCE_PIECES = 1024
"""Longer inputs are truncated to this many pieces."""

MAX_BATCH_POSITIONS = 2048
"""Padded source positions of one batch, at most: bounds memory when sentences are long."""


def read_source(tokenizer: Tokenizer, text: str) -> tuple[list[int], int]:
    """Turn text into what the encoder reads.

    Args:
        tokenizer: Of the model.
        text: One sentence.

    Returns:
        Ids, eos last, none for blank text; and the number of pieces beyond MAX_SOURCE_PIECES, which
        are left out.

    Raises:
        InputError: Not a str, or one that holds lone surrogates.
    """
    ids = tokenizer.encode(text)
    return ([*ids[:MAX_SOURCE_PIECES], EOS_ID] if ids else []), max(0, len(ids) - MAX_SOURCE_PIECES)


def group_sources(lengths: Sequence[int], batch_size: int, hypotheses: int = 1) -> Iterator[tuple[list[int], int]]:
    """Group non-empty sources by length, longest first, for one search each.

    Args:
        lengths: Ids of each source; those of length 0 are in no group.
        batch_size: Sentences decoded at once, at most.
        hypotheses: Rows of each sentence.

    Yields:
        Indices, and the number of sentences that MAX_BATCH_POSITIONS allows for their longest: all
        sources that may share a full batch form one group.
    """
    present = (index for index, length in enumerate(lengths) if length)
    order = sorted(present, key=lengths.__getitem__, reverse=True)
    allowed = ((index, _places_allowed(lengths[index] * hypotheses, batch_size)) for index in order)
    for places, group in itertools.groupby(allowed, lambda pair: pair[1]):
        indices = [index for index, _ in group]
        if places > 1:
            yield indices, places
        else:  # nothing is shared, and each search returns its memory before the next begins
            yield from (([index], 1) for index in indices)


def batch_sources(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Deal non-empty sources into batches of similar length, longest first, where none may enter later.

    Yields:
        Indices of a batch: as many as the group of its longest allows; see :func:`group_sources`.
    """
    for group, places in group_sources(lengths, batch_size):
        yield from (group[start : start + places] for start in range(0, len(group), places))


def _places_allowed(length: int, batch_size: int) -> int:
    return max(1, min(batch_size, MAX_BATCH_POSITIONS // padded_length(length)))
