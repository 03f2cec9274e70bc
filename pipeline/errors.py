"""The one fault that the user can mend; anything else stays a traceback."""


class PipelineError(Exception):
    """One line that says where, what was found and what to do."""
