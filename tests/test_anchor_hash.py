"""The hashes: XXH3-128 and SipHash-2-4-128 have their published values, on the host and in device code; NH is what its formula says."""

import ctypes
import hashlib

import pytest
import torch

from tests.anchor_crafted import WORD, table_keys
from tests.anchor_helpers import PORTABLE, build_kernels, launch, packed

# xxhash 4.1.0: xxhash.xxh3_128_intdigest(message(length), seed)
GOLD = {
    (0, 0x0): 0x99AA06D3014798D86001C324468D497F,
    (1, 0x0): 0x22BBB76B211A39BA13E608BC156DEFED,
    (4, 0x1): 0xF590324EEBA01E83CE2E0CB7C8F24F22,
    (9, 0x1): 0xDA675DDC3B4DB8A0804A72B8C34A0324,
    (17, 0x0): 0x4425A1034BFAC3DDA27E0A7BF95A7766,
    (128, 0x9E3779B97F4A7C15): 0x96679CDA466222472B7260709F4D0616,
    (129, 0x9E3779B97F4A7C15): 0x9226BADF5D17D2A1F7870F35B179CEE7,
    (240, 0x1): 0xB35A771815C1157133F06E0F5C6A8821,
    (241, 0x9E3779B97F4A7C15): 0xFD8545F50FD84F358482BF5C1E54A70E,
    (1024, 0x1): 0xAFCDFBE599F36A566BCD80A6938F73D2,
    (1025, 0x0): 0xE3FE32B2E0F44F07301C92E76D11BD08,
    (1 << 20, 0x9E3779B97F4A7C15): 0x720E75CD7B0F76A977CC4DEE5AE2D9D4,
}
# sha256 over xxh3_128_digest(message(length), 42) for every length from 0 to 1299
GOLD_SWEEP = "61bb4999c29b1df746ad7fef53cad55ae8601eb95e4f27e86cdc525361ae3439"


def message(length: int) -> bytes:
    return bytes((i * i * 31 + i * 7 + 3) % 251 for i in range(length))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return build_kernels(tmp_path_factory.mktemp("hash"))


def on_host(library, messages: list[bytes], seed: int) -> list[int]:
    values, out = [], (ctypes.c_uint64 * 2)()
    for data in messages:
        library.host_fingerprint(data, ctypes.c_int64(len(data)), ctypes.c_uint64(seed), out)
        values.append(out[0] | out[1] << 64)
    return values


def at_level(level: int):
    """The host's function with the part for longer states of one instruction set."""

    def run(library, messages: list[bytes], seed: int) -> list[int]:
        values, out = [], (ctypes.c_uint64 * 2)()
        for data in messages:
            if not library.host_fingerprint_at(level, data, ctypes.c_int64(len(data)), ctypes.c_uint64(seed), out):
                pytest.skip(f"this machine has no {LEVELS[level]}")
            values.append(out[0] | out[1] << 64)
        return values

    return run


def on_device(library, messages: list[bytes], seed: int) -> list[int]:
    """What the kernels write for each message, without a table: as many blocks as there are rows, so that every one is a first."""
    rows, prints = packed(messages), torch.empty(len(messages), 2, dtype=torch.int64)
    settings = torch.tensor([len(messages), signed(seed), 0, 0, 128, 16, 1])
    counters, long_rows = torch.zeros(2, dtype=torch.int32), torch.empty(len(messages), dtype=torch.int64)
    arguments = [settings, rows.data, rows.starts, rows.lengths, prints, long_rows, counters]
    for kernel in (0, 1):  # of one warp, and of a block, a state
        launch(library, kernel, arguments, blocks=2)
    return unsigned(prints)


def signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def unsigned(prints: torch.Tensor) -> list[int]:
    return [(low & (2**64 - 1)) | (high & (2**64 - 1)) << 64 for low, high in prints.tolist()]


LEVELS = {1: "AVX2", 2: "AVX-512"}
EVERYWHERE = pytest.mark.parametrize("run", [on_host, *map(at_level, LEVELS), on_device], ids=["host", *LEVELS.values(), "device"])


@EVERYWHERE
def test_published_values(kernels, run):
    for (length, seed), expected in GOLD.items():
        assert run(kernels, [message(length)], seed) == [expected], (length, seed)


def swept(library, run) -> str:
    """As GOLD_SWEEP."""
    values = run(library, [message(length) for length in range(1300)], 42)
    return hashlib.sha256(b"".join(value.to_bytes(16, "big") for value in values)).hexdigest()


@EVERYWHERE
def test_every_length(kernels, run):
    assert swept(kernels, run) == GOLD_SWEEP


def test_one_bit_of_a_state_changes_half_of_the_fingerprint(kernels):
    for length in (4, 16, 64, 200, 2000):
        base = message(length)
        flipped = [
            base[:at] + bytes([base[at] ^ 1 << bit]) + base[at + 1 :] for at in range(0, length, max(1, length // 32)) for bit in range(8)
        ]
        reference, *others = on_host(kernels, [base, *flipped], 7)
        mean = sum(bin(reference ^ other).count("1") for other in others) / len(others)
        assert 56 < mean < 72, length


# The reference implementation's vectors for 128 bits: key 00 01 .. 0f, message 00 01 .. of each length; and sha256 of those of 0 to 63.
SIP_KEY = (0x0706050403020100, 0x0F0E0D0C0B0A0908)
SIP_GOLD = {
    0: "a3817f04ba25a8e66df67214c7550293",
    1: "da87c1d86b99af44347659119b22fc45",
    7: "a1f1ebbed8dbc153c0b84aa61ff08239",
    8: "3b62a9ba6258f5610f83e264f31497b4",
    15: "5493e99933b0a8117e08ec0f97cfc3d9",
    63: "5150d1772f50834a503e069a973fbd7c",
}
SIP_GOLD_SWEEP = "ecfaa9fe47ff788fa834a9863ea2715a2880cd37d2b8c3c194402838428119b9"


def sip_on_host(library, messages: list[bytes]) -> list[int]:
    values, out = [], (ctypes.c_uint64 * 2)()
    for data in messages:
        library.host_siphash(data, ctypes.c_int64(len(data)), *map(ctypes.c_uint64, SIP_KEY), out)
        values.append(out[0] | out[1] << 64)
    return values


def sip_on_device(library, messages: list[bytes]) -> list[int]:
    rows, prints = packed(messages), torch.empty(len(messages), 2, dtype=torch.int64)
    settings = torch.tensor([len(messages), 0, *SIP_KEY, 128, 16, 1])
    slots = torch.full_like(rows.starts, -1)  # all were set aside
    launch(library, 4, [settings, rows.data, rows.starts, rows.lengths, slots, prints], blocks=2)
    return unsigned(prints)


@pytest.mark.parametrize("run", [sip_on_host, sip_on_device])
def test_siphash_is_the_published_one(kernels, run):
    values = [value.to_bytes(16, "little") for value in run(kernels, [bytes(range(length)) for length in range(64)])]
    assert {length: values[length].hex() for length in SIP_GOLD} == SIP_GOLD
    assert hashlib.sha256(b"".join(values)).hexdigest() == SIP_GOLD_SWEEP


@pytest.mark.parametrize("length", [8193, 9216, 9217, 16384, 20_000, 40_961])
def test_a_block_and_the_host_agree_on_long_states(kernels, length):
    messages = [message(length), message(length)[::-1], b"\0" * length]
    assert on_device(kernels, messages, 7) == on_host(kernels, messages, 7)


# ---- NH, by which a host's tables find states of up to 240 bytes ---------------------------------------------------------------------


def short_hash(data: bytes, seed: int) -> int:
    """From the formula: the sum over words of (low half + key) * (high half + key), with the length, mixed."""
    keys = table_keys(seed)

    def halves(number: int) -> tuple[int, int]:
        return number % 2**32, number >> 32

    def product(word: int, key: int) -> int:
        (low, high), (low_key, high_key) = halves(word), halves(key)
        return ((low + low_key) % 2**32) * ((high + high_key) % 2**32)

    def words(piece: bytes) -> list[int]:
        return [int.from_bytes(piece[at : at + 8], "little") for at in (0, 8)]

    length = len(data)
    if length > 16:
        pieces = [data[at : at + 16] for at in range(0, length - 16, 16)]
        pairs = [pair for at, piece in enumerate(pieces) for pair in zip(words(piece), keys[2 * at : 2 * at + 2])]
        pairs += zip(words(data[-16:]), keys[30:])
    elif length >= 4:
        wide = 8 if length >= 8 else 4
        pairs = zip((int.from_bytes(data[:wide], "little"), int.from_bytes(data[-wide:], "little")), keys)
    else:
        pairs = [(int.from_bytes(bytes([data[0], data[length // 2], data[-1]]), "little") if data else 0, keys[0]), (0, keys[1])]
    mixed = (sum(product(word, key) for word, key in pairs) + length * 0x9E3779B185EBCA87) % WORD
    mixed = (mixed ^ mixed >> 37) * 0x165667919E3779F9 % WORD
    return mixed ^ mixed >> 32


def short_hash_of(library, data: bytes, seed: int) -> int:
    library.host_short_hash.restype = ctypes.c_uint64
    return library.host_short_hash(data, ctypes.c_int64(len(data)), ctypes.c_uint64(seed))


@pytest.fixture(scope="module")
def portable(tmp_path_factory):
    return build_kernels(tmp_path_factory.mktemp("portable"), PORTABLE)


@pytest.mark.parametrize("build", ["kernels", "portable"])
def test_the_short_hash_is_its_formula(request, build):
    library = request.getfixturevalue(build)
    for seed in (0, 11, WORD - 1):
        for length in range(241):
            data = message(300)[length // 3 :][:length]
            assert short_hash_of(library, data, seed) == short_hash(data, seed), (length, seed)


@pytest.mark.parametrize("run", [on_host, on_device])
def test_fingerprints_without_sse2(portable, run):
    assert swept(portable, run) == GOLD_SWEEP


def test_one_bit_of_a_state_changes_half_of_the_short_hash(kernels):
    for length in (1, 4, 8, 16, 64, 200, 240):
        base = message(length)
        flipped = [base[:at] + bytes([base[at] ^ 1 << bit]) + base[at + 1 :] for at in range(length) for bit in range(8)]
        changed = [bin(short_hash_of(kernels, base, 7) ^ short_hash_of(kernels, other, 7)).count("1") for other in flipped]
        assert 28 < sum(changed) / len(changed) < 36 and min(changed) > 0, length
