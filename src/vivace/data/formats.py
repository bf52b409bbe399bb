"""The formats that are read, by content: a table of their extensions, and what tells them apart by the first bytes.

An allow-list: Pillow would hand EPS to Ghostscript, and FITS or PDF are no photos.
"""

from __future__ import annotations

__all__ = ["EXTENSIONS", "FORMATS", "HEAD_BYTES", "REFUSED_EXTENSIONS", "SPOKEN", "sniff"]

# format, as Pillow names it → extensions
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    # several pictures in one JPEG file: `sniff` calls it JPEG
    "MPO": (".jpg", ".jpeg", ".jpe", ".mpo"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    # read by the extra "heic"
    "HEIF": (".heic", ".heif", ".hif"),
}
SPOKEN = "JPEG, PNG, WebP, AVIF, HEIC, BMP, GIF, TIFF or PPM"
EXTENSIONS = frozenset(extension for extensions in FORMATS.values() for extension in extensions)
REFUSED_EXTENSIONS = frozenset(
    (".eps", ".ps", ".pdf", ".fits", ".fit", ".svg", ".wmf", ".emf", ".psd", ".hdf5", ".h5", ".dcm", ".raw", ".dng")
)
# how much of a file `sniff` needs: the brands of a HEIC or AVIF file stand in its first box
HEAD_BYTES = 64

STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    # BigTIFF
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
# sizes of the header that follows BMP's first 14 bytes: "BM" alone begins many a text
BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
# ISO/IEC 23008-12 and the AVIF specification: brands of still pictures and sequences
AVIF_BRANDS = frozenset((b"avif", b"avis"))
HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))


def sniff(head: bytes) -> str | None:
    """The format of a file, a key of `FORMATS`, by its first `HEAD_BYTES` bytes; None: no image that is read."""
    for start, kind in STARTS:
        if head.startswith(start):
            # Canon's raw pictures are TIFF but for this mark
            return None if kind == "TIFF" and head[8:10] == b"CR" else kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in BMP_HEADERS:
        return "BMP"
    if head[:1] == b"P" and head[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6") and head[2:3] in b" \t\r\n\v\f#":
        return "PPM" if len(head) > 2 else None
    return _by_brand(head) if head[4:8] == b"ftyp" else None


def _by_brand(head: bytes) -> str | None:
    """AVIF or HEIF by the major brand, else by the first of the compatible ones that tells."""
    end = min(len(head), int.from_bytes(head[:4], "big"))
    for brand in (head[8:12], *(head[place : place + 4] for place in range(16, end - 3, 4))):
        if brand in AVIF_BRANDS:
            return "AVIF"
        if brand in HEIF_BRANDS:
            return "HEIF"
    return None
