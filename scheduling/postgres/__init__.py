"""The ledger's server: statements, values and connections, and what becomes of them."""
