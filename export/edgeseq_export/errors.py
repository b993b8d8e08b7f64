"""What export raises."""

from __future__ import annotations

from edgeseq.errors import EdgeseqError


class ExportError(EdgeseqError):
    """A bundle cannot be made, or what was made is not what torch computes."""
