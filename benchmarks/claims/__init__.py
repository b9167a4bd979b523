"""What `python -m benchmarks.findings` shows: traps of this field, each with its measure."""
