"""PostgreSQL beneath the ORM: statements, values, connections and their failures."""
