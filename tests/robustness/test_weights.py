"""Weights of other projects: a damaged or odd file is one message that names it, never a guess.

Mutated files are read as `python -m moco_jax.convert` reads them. The result is the same arrays, or
a ValueError that names the file.
"""

import functools
import io
import json
import random
import resource
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save

from moco_jax.weights import sources, variables
from moco_jax.weights.names import NAMINGS
from tests.weights.networks import assert_same, encoder, library

FOUND = encoder(head=False, width=1 / 64)
ARRAYS = variables.to_torch(FOUND.variables, NAMINGS["torchvision"], FOUND.config)
MEMORY = 2**30  # bytes by which the process may grow while it reads damaged files
FEW, MANY = 300, 5000

counts = pytest.mark.parametrize(
    "count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"]
)


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads the bytes of a file; returns its arrays, or None after an error that names the file."""
    template = functools.cache(lambda text, **parts: variables_template(configs[text], **parts))
    variables_template, configs = variables.template, {}

    def cached(config, **parts):
        configs[config.to_json_best_effort()] = config
        return template(config.to_json_best_effort(), **parts)

    monkeypatch.setattr(variables, "template", cached)

    def read(content: bytes, suffix: str):
        path = tmp_path / f"file{suffix}"
        path.write_bytes(content)
        try:
            return sources.read(path).pretrained.variables
        except ValueError as error:
            assert str(path) in str(error)
            assert "Traceback" not in str(error) and len(str(error)) < 1500
            return None

    return read


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def damage(content: bytes, rng: random.Random, end: int | None = None) -> bytes:
    """Returns bytes with one to four changes before `end`."""
    data, end = bytearray(content), end or len(content)
    for _ in range(rng.randint(1, 4)):
        at, size = rng.randrange(end), rng.choice([1, 1, 2, 8, 64])
        kind = rng.choice(["bit", "byte", "cut", "zero", "copy", "insert"])
        if kind == "bit":
            data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
        elif kind == "byte":
            data[min(at, len(data) - 1)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind == "cut":
            del data[rng.randrange(len(data)) :]
            data = data or bytearray(1)
        elif kind == "zero":
            data[at : at + size] = bytes(size)
        elif kind == "copy":
            source = rng.randrange(end)
            data[at : at + size] = data[source : source + size]
        else:
            data[at:at] = rng.randbytes(size)
        end = min(end, len(data))
    return bytes(data)


def header_of(content: bytes) -> tuple[dict, bytes]:
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ODD = [0, -1, 1, 2**31, 2**60, 2**64, 1.5, "8", None, True, [], {}, [[[]]], "F32", "é\x00"]
DTYPES = ["F64", "F16", "BF16", "I32", "U32", "I64", "BOOL", "F8_E4M3", "C64", "F4", "float32", ""]


def odd_header(header: dict, rng: random.Random) -> dict:
    """Returns the header with one field that does not fit."""
    header = json.loads(json.dumps(header))
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry, kind = header[name], rng.randrange(6)
    if kind == 0:
        entry["dtype"] = rng.choice([*DTYPES, *ODD])
    elif kind == 1:
        entry["shape"] = rng.choice([*ODD, [*entry["shape"], 2], [2**60, 2**60], [-1], [0]])
    elif kind == 2:
        entry["data_offsets"] = rng.choice([*ODD, [0, 2**60], [2**62, 2**62 + 4], [8, 4], [0]])
    elif kind == 3:
        del entry[rng.choice(list(entry))]
    elif kind == 4:
        header[name] = rng.choice(ODD)
    else:
        header[rng.choice(["", "é", "x" * 10_000, "__metadata__"])] = header.pop(name)
    return header


def check_outcomes(read, contents, suffix: str, want=FOUND.variables) -> None:
    """Reads damaged files; `want` are the only arrays that may be read, None allows any."""
    before, same, refused = peak(), 0, 0
    for content in contents:
        got = read(content, suffix)
        if got is None:
            refused += 1
        else:
            same += 1
            if want is not None:
                assert_same(got, want)
    print(f"{same} read, {refused} refused")
    assert refused > same and peak() - before < MEMORY


@counts
def test_damaged_safetensors(read, count):
    """The format has no checksum of the arrays' bytes, so those stay as they are."""
    content, rng = save(ARRAYS), random.Random(0)
    start = 8 + int.from_bytes(content[:8], "little")
    check_outcomes(read, (damage(content, rng, start) for _ in range(count)), ".safetensors")


@counts
def test_odd_fields_in_the_header_of_safetensors(read, count):
    (header, data), rng = header_of(save(ARRAYS)), random.Random(1)
    contents = (with_header(odd_header(header, rng), data) for _ in range(count))
    check_outcomes(read, contents, ".safetensors")


@pytest.mark.parametrize("length", [0, 1, 7, 2**20, 2**31, 2**60, 2**63, 2**64 - 1])
def test_a_header_that_claims_another_length(read, length):
    content = save(ARRAYS)
    before = peak()
    assert read(length.to_bytes(8, "little") + content[8:], ".safetensors") is None
    assert peak() - before < MEMORY


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"a": 1}',
        b"\xff" * 50,
    ],
)
def test_a_header_that_is_no_list_of_arrays(read, header):
    assert read(with_header(header, b"\x00" * 64), ".safetensors") is None


@pytest.mark.parametrize("content", [b"", b"{", b"\x00" * 8, b"PK", b"\x80", b"PK\x03\x04" * 9])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_short_files(read, content, suffix):
    if suffix == ".pth" and content[:1] in (b"P", b"\x80"):
        library("torch")
    assert read(content, suffix) is None


def test_flipped_bits_of_an_array_change_no_other(read):
    content, rng = save(ARRAYS), random.Random(2)
    for _ in range(20):
        data = bytearray(content)
        data[rng.randrange(len(data) - 4, len(data))] ^= 1
        got = read(bytes(data), ".safetensors")
        if got is not None:
            assert set(got) == set(FOUND.variables)


def torch_bytes(content, **options) -> bytes:
    torch = library("torch")
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in content.items()}
    file = io.BytesIO()
    torch.save({"state_dict": tensors, "epoch": 3}, file, **options)
    return file.getvalue()


@counts
def test_damaged_torch_files(read, count):
    content, rng = torch_bytes(ARRAYS), random.Random(3)
    check_outcomes(read, (damage(content, rng) for _ in range(count)), ".pth")


@counts
def test_damaged_torch_files_of_the_old_format(read, count):
    """It has no checksums: damage to an array's bytes can't be seen."""
    content = torch_bytes(ARRAYS, _use_new_zipfile_serialization=False)
    rng = random.Random(4)
    end = content.index(b"layer2.0")
    contents = (damage(content, rng, end) for _ in range(count))
    check_outcomes(read, contents, ".pth", want=None)


@counts
def test_torch_files_with_an_odd_pickle(read, count):
    """The checksums are right, as in a file that someone made: nothing may crash."""
    content, rng = torch_bytes(ARRAYS), random.Random(5)

    def odd():
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
            for member in old.infolist():
                data = old.read(member)
                pickled = member.filename.endswith("data.pkl")
                new.writestr(member.filename, damage(data, rng) if pickled else data)
        return file.getvalue()

    check_outcomes(read, (odd() for _ in range(count)), ".pth", want=None)


def test_a_whole_file_is_read(read):
    assert_same(read(save(ARRAYS), ".safetensors"), FOUND.variables)
    assert_same(read(torch_bytes(ARRAYS), ".pth"), FOUND.variables)
    old = torch_bytes(ARRAYS, _use_new_zipfile_serialization=False)
    assert_same(read(old, ".pth"), FOUND.variables)
