"""Settings that all tests share."""

import tempfile
from pathlib import Path

from hypothesis import configuration, settings

# Property tests draw the same examples on every machine, and leave nothing in the working tree.
configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "edgeseq-hypothesis")
settings.register_profile("edgeseq", derandomize=True, database=None, deadline=None, max_examples=30)
settings.load_profile("edgeseq")
