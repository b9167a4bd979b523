"""Gradients of parameters, sample by sample."""
