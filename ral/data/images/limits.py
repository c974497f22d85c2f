"""Limits that stand before memory: how large an image and its file may be, and how much a packed file may hold."""

# No radiograph is near these: a chest has up to 17 million pixels, a mammogram 28. The most pixels take 134 MB at 16 bits and
# 201 MB in colour.
MOST_PIXELS = 1 << 26
MOST_BYTES = 256 << 20

# Images hardly shrink in an archive. One that grows more than this many times, and beyond this size, is made to harm.
MOST_GROWTH, ANY_GROWTH = 200, 1 << 30
