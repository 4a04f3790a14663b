"""How good a model still is. Knows only the public interface of llmprune."""
