"""Training: objectives, oracles, and the loop that survives interruption."""
