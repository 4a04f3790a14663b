"""What can go wrong, from the user's side: the request was wrong, or the job failed."""


class LlmpruneError(ValueError):
    """Any failure that llmprune explains in one sentence."""


class RequestError(LlmpruneError):
    """The request cannot be carried out as asked; nothing was written. Exit code 2."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class JobError(LlmpruneError):
    """The request was sound, and carrying it out failed. Exit code 1."""
