"""Layers that stand for larger ones: plain torch modules, which import nothing else of the project and run without it."""
