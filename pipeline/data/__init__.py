"""Where pictures come from, what they are, and how they are dealt out."""
