"""Scripts that run in the environments of the peers.

They import nothing of ours but `child` and, those called *_coverage, the networks of `benchmarks.coverage`.
"""
