"""One file for each DVC stage, of the same name."""
