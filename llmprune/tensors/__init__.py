"""All that a method may import."""
