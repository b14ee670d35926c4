"""The commands' shared parts: parsing, options and output."""
