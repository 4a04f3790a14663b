"""One run from request to finished folder."""
