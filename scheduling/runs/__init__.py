"""Runs: how they are made, what they carry, and which runs follow them."""
