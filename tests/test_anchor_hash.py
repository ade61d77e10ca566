"""The fingerprint is XXH3-128: values published by the xxHash project's Python package, for the host and for the device code."""

import ctypes
import hashlib

import pytest
import torch

from tests.anchor_helpers import build_kernels, launch, packed

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


def on_device(library, messages: list[bytes], seed: int) -> list[int]:
    signed = seed - 2**64 if seed >= 2**63 else seed
    rows = packed(messages)
    prints = launch(library, rows, torch.zeros_like(rows.starts), 128, seed=signed)[0]
    return [(low & (2**64 - 1)) | (high & (2**64 - 1)) << 64 for low, high in prints.tolist()]


@pytest.mark.parametrize("run", [on_host, on_device])
def test_published_values(kernels, run):
    for (length, seed), expected in GOLD.items():
        assert run(kernels, [message(length)], seed) == [expected], (length, seed)


@pytest.mark.parametrize("run", [on_host, on_device])
def test_every_length(kernels, run):
    values = run(kernels, [message(length) for length in range(1300)], 42)
    assert hashlib.sha256(b"".join(value.to_bytes(16, "big") for value in values)).hexdigest() == GOLD_SWEEP


def test_one_bit_of_a_state_changes_half_of_the_fingerprint(kernels):
    for length in (4, 16, 64, 200, 2000):
        base = message(length)
        flipped = [
            base[:at] + bytes([base[at] ^ 1 << bit]) + base[at + 1 :] for at in range(0, length, max(1, length // 32)) for bit in range(8)
        ]
        reference, *others = on_host(kernels, [base, *flipped], 7)
        mean = sum(bin(reference ^ other).count("1") for other in others) / len(others)
        assert 56 < mean < 72, length
