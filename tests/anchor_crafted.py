"""States whose hashes are all equal, for one seed: what an enemy who knew the seed could send.

XXH3-128, the fingerprint: a state of 64 bytes is hashed as two pairs of 16-byte pieces. Each piece is multiplied by itself, keyed:
(first word ^ key) * (second word ^ key). A first word equal to its key makes the product 0 whatever the second word is, so one piece's
second word is free; what it does to the sum, the second word of the other piece undoes.

NH, which finds the states of a host's tables: the halves of a word are multiplied, each plus a key. A half that is minus its key makes the
product 0 whatever the other half is.
"""

import random
import struct

SECRET = (0xBE4BA423396CFEB8, 0x1CAD21F72C81017C, 0xDB979083E96DD4DE, 0x1F67B3B7A4A44072, 0x78E5C0CC4EE679CB, 0x2172FFCC7DD05A82)
SECRET += (0x8E2443F7744608B8, 0x4C263A81E69035E0)  # the first 64 bytes of XXH3's published secret, as words
WORD = 2**64


def crafted_states(seed: int, count: int) -> list[bytes]:
    """`count` different states of 64 bytes with one fingerprint under `seed` (an unsigned 64-bit integer)."""
    draw = random.Random(seed)
    free = [draw.randrange(WORD) for _ in range(count)]
    third, fourth = [draw.randrange(WORD) for _ in range(2)], [draw.randrange(WORD) for _ in range(2)]
    first_word, second_word = (SECRET[0] + seed) % WORD, (SECRET[4] + seed) % WORD
    states = []
    for word in free:
        high = _product(third, SECRET[6:8], seed) ^ (second_word + word) % WORD
        high = (high + _product(fourth, SECRET[2:4], seed)) % WORD
        undoes = ((high ^ 0x5EED) - first_word) % WORD  # high ^ (first_word + undoes) is the same number for all
        states.append(struct.pack("<8Q", first_word, undoes, second_word, word, *third, *fourth))
    return states


def _product(words: list[int], key: tuple[int, ...], seed: int) -> int:
    product = (words[0] ^ (key[0] + seed) % WORD) * (words[1] ^ (key[1] - seed) % WORD)
    return product % WORD ^ product // WORD


def table_keys(seed: int) -> list[int]:
    """The words of NH's key for `seed`: splitmix64."""
    words = []
    for step in range(1, 33):
        word = (seed + step * 0x9E3779B97F4A7C15) % WORD
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % WORD
        word = (word ^ word >> 27) * 0x94D049BB133111EB % WORD
        words.append(word ^ word >> 31)
    return words


def crafted_for_tables(seed: int, count: int) -> list[bytes]:
    """`count` different states of 64 bytes that a host's table puts into one place under `seed`."""
    draw = random.Random(seed)
    low = -table_keys(seed)[0] % 2**32
    rest = draw.randbytes(56)
    return [struct.pack("<II", low, high) + rest for high in draw.sample(range(2**32), count)]
