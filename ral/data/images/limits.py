"""Limits checked before memory is allocated: size of an image and its file, and expansion of compressed files."""

# No radiograph comes close: chest images have up to 17 million pixels, mammograms 28. MAX_PIXELS takes 134 MB
# at 16 bits and 201 MB in color.
MAX_PIXELS = 1 << 26
MAX_BYTES = 256 << 20

# Images hardly compress. An archive that expands by more than this factor, and beyond this size, is a
# decompression bomb.
MAX_EXPANSION, EXPANSION_CHECK_BYTES = 200, 1 << 30
