"""Maps patient ids to numbers by hash, so that new patients never move old ones."""

import hashlib


def hash_to_unit_interval(text: str, person: bytes = b"") -> float:
    """Map a text to a number in [0, 1) with BLAKE2b, uniformly and the same on every machine.

    Args:
        text: what to hash.
        person: personalization of the hash; numbers for different values of it are independent.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=person).digest()
    return int.from_bytes(digest) / 2**64
