"""Files made to take memory: each is refused by what it claims, or read a block at a time."""

import gzip
import io
import json
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

MIB = 1 << 20
# Most memory that reading any of these may take beyond what Python and its libraries have; blocks are small.
MOST = 48

# Lists the images of each data folder and prints how it ends and by how many MiB the most memory ever used grew.
SCRIPT = """
import json, resource, sys
from pathlib import Path
from ral.data.images.locate import list_images
from ral.data.manifest import read_manifest
from ral.errors import UserError

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

def end(read, folder):
    try:
        read(folder, lambda _: None)
    except UserError as error:
        return str(error)
    return "read"

end(list_images, Path(sys.argv[1]) / "control")
results = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    before = most()
    said = [end(read, folder) for read in (list_images, read_manifest)]
    results[folder.name] = [*said, most() - before]
print(json.dumps(results))
"""


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE, form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar's header that claims a size."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(form)


def zeros(mib: int, ending: bytes = b"") -> bytes:
    """Gzip members of zeros, and then of `ending`; quickly, as each 64 MiB are the same member."""
    part = gzip.compress(bytes(min(mib, 64) * MIB), 1)
    return part * max(1, mib // 64) + gzip.compress(ending)


def signed(block: bytearray) -> bytes:
    """A header with its checksum put right."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def sparse(size: int) -> bytes:
    """A tar with an image that is a hole of `size` bytes and one block, in GNU's old form."""
    block = bytearray(header("a.png", 512, tarfile.GNUTYPE_SPARSE))
    block[386:410] = b"%011o\0%011o\0" % (0, 512)
    block[483:495] = b"\x80" + size.to_bytes(11, "big")
    return signed(block) + b"x" * 512 + bytes(1024)


def lying_zip(mib: int) -> bytes:
    """A zip whose image is said to have 1 kB and unpacks to much more."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    packed = b"".join(packer.compress(bytes(MIB)) for _ in range(mib)) + packer.flush()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.png", packed)
    content = bytearray(out.getvalue())
    for place in (content.index(b"PK\3\4") + 8, content.rindex(b"PK\1\2") + 10):
        content[place : place + 2] = b"\x08\0"  # deflated
    for place in (content.index(b"PK\3\4") + 22, content.rindex(b"PK\1\2") + 24):
        content[place : place + 4] = (1000).to_bytes(4, "little")
    return bytes(content)


def overlapping_zip() -> bytes:
    """A zip of which two images are the same bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.png", b"x" * 1000)
        archive.writestr("b.png", b"x" * 1000)
    content = bytearray(out.getvalue())
    second = content.rindex(b"PK\1\2")
    content[second + 42 : second + 46] = bytes(4)
    content[second + 46 : second + 51] = b"a.png"
    return bytes(content)


def claiming_zip(size: int, images: int = 1) -> bytes:
    """A zip whose images are said to be very large."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for number in range(images):
            archive.writestr(f"{number}.png", b"x" * 1000)
    parts = out.getvalue().split(b"PK\1\2")  # each but the first begins with an entry of the list of members
    return b"PK\1\2".join(
        [parts[0], *(part[:20] + size.to_bytes(4, "little") + part[24:] for part in parts[1:])]
    )


def pax_sparse_map() -> bytes:
    """A gzipped tar with a sparse image whose list of pieces has no end."""
    record = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
    record += b"32 GNU.sparse.realsize=12345678\n"[:32]
    pax = header("x", len(record), tarfile.XHDTYPE) + record.ljust(512, b"\0")
    numbers = gzip.compress(b"1\n" * (32 * MIB), 1)
    return gzip.compress(pax + header("a.png", 1 << 40) + b"999999999\n") + numbers * 2


def growing_tar() -> bytes:
    """A gzipped tar that grows a thousandfold by what is no image."""
    return gzip.compress(header("README.txt", 4096 * MIB)) + zeros(4096)


CASES: dict[str, tuple[str, bytes, str]] = {
    "claim_of_a_terabyte": ("images.tar", header("a.png", 1 << 40), "has 1,099,511,627,776 bytes; the limit for an image is"),
    "claim_in_gzip": ("images.tgz", gzip.compress(header("a.png", 1 << 40)), "has 1,099,511,627,776 bytes"),
    "claim_below_zero": ("images.tar", header("a.png", -512), "truncated or damaged"),
    "large_zeros": ("images.tar.gz", gzip.compress(header("a.png", 640 * MIB)) + zeros(640), "has 671,088,640 bytes"),
    "zeros_that_may_be_a_image": (
        "images.tar.gz", gzip.compress(header("a.png", 192 * MIB)) + zeros(192, bytes(1024)), "read",
    ),
    "growth": ("images.tar.gz", growing_tar(), "unpacks to more than 200 times its size"),
    "name_without_end": (
        "images.tar.gz", gzip.compress(header("././@LongLink", 256 * MIB, tarfile.GNUTYPE_LONGNAME)) + zeros(256),
        "a header of more than 1,048,576 bytes",
    ),
    "pax_without_end": (
        "images.tar.gz", gzip.compress(header("x", 256 * MIB, tarfile.XHDTYPE)) + zeros(256),
        "a header of more than 1,048,576 bytes",
    ),
    "headers_in_headers": (
        "images.tar", (header("x", 1, tarfile.GNUTYPE_LONGNAME) + bytes(512)) * 3000, "truncated or damaged",
    ),
    "sparse_terabyte": ("images.tar", sparse(1 << 40), "has 1,099,511,627,776 bytes"),
    "sparse_image": ("images.tar", sparse(16 * MIB), "read"),
    "sparse_map_without_end": ("images.tar.gz", pax_sparse_map(), "truncated or damaged"),
    "lying_zip": ("images.zip", lying_zip(192), "truncated or damaged"),
    "overlapping_zip": ("images.zip", overlapping_zip(), "members overlap"),
    "growing_zip": ("images.zip", claiming_zip(250 * MIB, 5), "unpacks to more than 200 times its size"),
    "claiming_zip": ("images.zip", claiming_zip(0xFFFFFFF0), "has 4,294,967,280 bytes; the limit for an image is"),
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """How listing each folder and reading its manifest ended, and the MiB that it took."""
    root = tmp_path_factory.mktemp("limits")
    (root / "control/images").mkdir(parents=True)
    (root / "control/images/a.png").write_bytes(b"x" * MIB)
    with tarfile.open(root / "control/images.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("b.png"))
    for name, (file, content, _) in CASES.items():
        (root / name).mkdir()
        (root / name / file).write_bytes(content)
    (root / "loose/images").mkdir(parents=True)
    with (root / "loose/images/a.png").open("wb") as stream:
        stream.truncate(1 << 40)  # takes no disk
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, root], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, list] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", CASES)
def test_archive_made_to_take_memory(results: dict[str, list], name: str) -> None:
    listed, manifest, grown = results[name]
    assert CASES[name][2] in listed
    assert manifest == listed
    assert grown < MOST


def test_sparse_file_of_a_terabyte_is_refused_before_it_is_read(results: dict[str, list]) -> None:
    listed, manifest, grown = results["loose"]
    assert "loose/images/a.png has 1,099,511,627,776 bytes; the limit for an image is 268,435,456" in listed
    assert manifest == listed
    assert grown < MOST
    assert results["control"][0] == "read"
