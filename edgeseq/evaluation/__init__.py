"""Evaluation of bundles, without torch: quality, depth, FLOPs and speed of depth policies."""
