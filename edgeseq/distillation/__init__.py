"""Sequence-level knowledge distillation: a student learns from its teacher's translations.

Y. Kim and A. Rush, "Sequence-Level Knowledge Distillation", 2016 (arXiv 1606.07947). Translating and selecting need no
torch; only the training of the student, which follows, does.
"""
