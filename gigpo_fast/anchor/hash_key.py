"""The random numbers behind the hashes, drawn once a process, so that nobody outside can prepare states that collide.

Ids never depend on them. GIGPO_FAST_HASH_SEED fixes them, to repeat a timing problem.
"""

import functools
import hashlib
import os
import struct
from typing import NamedTuple

from .. import checks


class HashKey(NamedTuple):
    """What a path needs to hash: the seed of XXH3-128 and NH, the key of SipHash, all as signed 64-bit integers."""

    seed: int
    sip_low: int
    sip_high: int
    bits: int = 128  # how many bits of each hash are kept; tests keep few, so that unequal states collide all the time


@functools.cache
def hash_key() -> HashKey:
    """This process's key."""
    given = os.environ.get("GIGPO_FAST_HASH_SEED")
    if given is None:
        return HashKey(*struct.unpack("<qqq", os.urandom(24)))
    try:
        seed = int(given, 0) % 2**64
    except ValueError:
        checks.fail("group_states", "GIGPO_FAST_HASH_SEED", "an integer", given, "unset it or correct it")
    drawn = hashlib.blake2b(seed.to_bytes(8, "little"), digest_size=16).digest()
    return HashKey((seed + 2**63) % 2**64 - 2**63, *struct.unpack("<qq", drawn))
