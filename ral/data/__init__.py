"""Data preparation: from images and a label table to a split and memory-mapped pixel shards."""
