"""How much goes where: one file per rule, looked up by its name."""
