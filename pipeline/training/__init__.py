"""Everything that fits a weight."""
