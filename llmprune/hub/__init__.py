"""A finished folder in, a repository on the Hub."""
