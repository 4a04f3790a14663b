"""Whatever has gradients."""
