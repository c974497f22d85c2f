"""Label tables larger than memory: rows spilled to disk, partitions, look-alike ids, duplicate images."""
