"""Runs whose execution and misfortunes are drawn from a seed, and the one law: what lies in the store is what a quiet run leaves."""
