"""Gradients, updates and weights over training: the subspaces they live in, beside what chance would give."""
