"""From files of images to decoded pixels in shards: where they are, what they hold, what is kept of them."""
