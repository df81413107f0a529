"""Compressed inputs with and without the fast libraries, and the checksums that lie beside them."""

import builtins
import gzip
import hashlib
import random
import threading

import pytest

from megatron_yuyuan.data.files import AtomicFiles, describe_source, hold, open_input
from megatron_yuyuan.errors import ConfigError, DataError

TEXT = b"".join(b"%d gout and water\n" % n for n in range(40_000))


@pytest.fixture(params=["isal", "zlib"])
def library(request, monkeypatch):
    """gzip by isal, and by the standard library."""
    if request.param == "isal":
        pytest.importorskip("isal")
        return
    real = builtins.__import__

    def refuse(name, *args, **options):
        if name.startswith("isal"):
            raise ImportError
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)


def read(tmp_path, content: bytes) -> bytes:
    (tmp_path / "input").write_bytes(content)
    with open_input(tmp_path / "input") as stream:
        return stream.read()


def zstd(content: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor(write_checksum=True).compress(content)


def test_compression_is_known_by_content(tmp_path, library):
    halves = TEXT[:1000], TEXT[1000:]
    for compress in (gzip.compress, zstd):
        assert read(tmp_path, compress(TEXT)) == TEXT
        assert read(tmp_path, b"".join(map(compress, halves))) == TEXT
    assert read(tmp_path, TEXT) == TEXT


@pytest.mark.parametrize("compress", [gzip.compress, zstd], ids=["gzip", "zstd"])
def test_a_stream_that_is_cut_is_refused(tmp_path, library, compress):
    """zstandard's own stream_reader takes each of these for a shorter text (0.25.0)."""
    content = compress(TEXT)
    for cut in (
        5,
        len(content) // 10,
        len(content) // 2,
        int(len(content) * 0.999),
        len(content) - 8,
    ):
        with pytest.raises(DataError, match="the compressed stream ends early"):
            read(tmp_path, content[:cut])


@pytest.mark.parametrize("compress", [gzip.compress, zstd], ids=["gzip", "zstd"])
def test_a_flipped_bit_is_refused(tmp_path, library, compress):
    content, draw = compress(TEXT), random.Random(3)
    for _ in range(50):
        place = draw.randrange(20, len(content))
        damaged = bytearray(content)
        damaged[place] ^= 1 << draw.randrange(8)
        with pytest.raises(DataError, match=r"damaged|ends early"):
            read(tmp_path, bytes(damaged))


def test_nothing_is_no_input(tmp_path, library):
    for content in (b"", gzip.compress(b""), zstd(b"")):
        with pytest.raises(DataError, match="is empty"):
            read(tmp_path, content)


def test_zstd_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    content, real = zstd(TEXT), builtins.__import__

    def refuse(name, *args, **options):
        if name == "zstandard":
            raise ImportError
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DataError, match="compressed with zstd") as error:
        read(tmp_path, content)
    assert "megatron_yuyuan[fast]" in error.value.remedy


def test_a_source_is_what_its_md5_file_says(tmp_path):
    file, digest = tmp_path / "a.xml.gz", hashlib.md5(TEXT).hexdigest()
    file.write_bytes(TEXT)
    described = describe_source(file)
    assert described["bytes"] == len(TEXT)
    assert described["sha256"] == hashlib.sha256(TEXT).hexdigest()
    named_as_sum = f"{digest}  {'0' * 32}\n"
    of_publisher = f"MD5(a.xml.gz)= {digest.upper()}\n"
    for line in (of_publisher, f"{digest}  a.xml.gz\n", named_as_sum, digest, "no sum in it"):
        (tmp_path / "a.xml.gz.md5").write_text(line)
        assert describe_source(file) == described
    (tmp_path / "a.xml.gz.md5").write_text("MD5(a.xml.gz)= " + "0" * 32)
    with pytest.raises(DataError, match=f"md5 {digest}, and a.xml.gz.md5 says 0000"):
        describe_source(file)


def test_zstd_with_a_long_window_is_read(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    long = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True, compression_level=1)
    stream = zstandard.ZstdCompressor(compression_params=long).compressobj()
    assert read(tmp_path, stream.compress(TEXT) + stream.flush()) == TEXT


def test_who_holds_a_folder_a_moment_longer_is_waited_for(tmp_path, monkeypatch):
    """As the children of a killed process, which the system ends one after another."""
    with hold(tmp_path, shared=False):
        monkeypatch.setattr("megatron_yuyuan.data.files.LETTING_GO", 0.1)
        with pytest.raises(ConfigError, match="is in use"), hold(tmp_path, shared=True):
            pass
    monkeypatch.setattr("megatron_yuyuan.data.files.LETTING_GO", 30.0)
    held, leave = threading.Event(), threading.Event()

    def other():
        with hold(tmp_path, shared=False):
            held.set()
            leave.wait(30)

    thread = threading.Thread(target=other)
    thread.start()
    assert held.wait(30)
    threading.Timer(0.2, leave.set).start()
    with hold(tmp_path, shared=False):
        assert leave.is_set()
    thread.join()


def test_one_name_for_two_outputs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is named for two outputs"), AtomicFiles() as files:
        files.open(tmp_path / "x")
        files.open(tmp_path / "x")
    assert not list(tmp_path.iterdir())
