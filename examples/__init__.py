"""Run files to start from, and a network for those that need one."""
