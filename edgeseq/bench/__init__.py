"""What `edgeseq bench` measures: whole decodes of a fixed shape, timed."""
