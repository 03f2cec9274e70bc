"""Pretrained networks as they are: naming pictures, segmenting them, finding the things in them, and drawing what was seen."""
