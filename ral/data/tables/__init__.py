"""Label tables of any size in little memory: rows spilled to disk, partitions, ids and images under two names."""
