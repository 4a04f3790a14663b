"""Write finished folders for other engines; no checkpoint is changed."""
