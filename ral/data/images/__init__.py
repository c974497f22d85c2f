"""From image files to pixel shards: locating, reading, decoding and caching images."""
