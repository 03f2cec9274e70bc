"""The data sets that have a name: where they are published, and what reads the formats that they are published in."""
