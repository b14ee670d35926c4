"""Runs: how they come to be, what they carry, and what their end sets off."""
