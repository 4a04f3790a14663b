"""What the user asks for, as data and as text."""

from llmprune.recipe.recipe import Recipe as Recipe
