"""The supported formats: their extensions, and how to detect them by the first bytes of a file.

This is an allow-list: Pillow would pass EPS to Ghostscript, for example.
"""

from __future__ import annotations

__all__ = [
    "EXTENSIONS",
    "FORMATS",
    "HEAD_BYTES",
    "NPY",
    "REFUSED_EXTENSIONS",
    "SUPPORTED",
    "sniff",
    "unsupported_format",
]

# Pillow's name of a format → extensions
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
    # needs the extra "heic"
    "HEIF": (".heic", ".heif", ".hif"),
}
# for messages
SUPPORTED = "JPEG, PNG, WebP, AVIF, HEIC, BMP, GIF, TIFF or PPM"
EXTENSIONS = frozenset(extension for extensions in FORMATS.values() for extension in extensions)
REFUSED_EXTENSIONS = frozenset(
    (".eps", ".ps", ".pdf", ".fits", ".fit", ".svg", ".wmf", ".emf", ".psd", ".hdf5", ".h5", ".dcm", ".raw", ".dng")
)
# NumPy's own format, of pixels that are kept as they are
NPY = b"\x93NUMPY"
# bytes of a file that `sniff` needs: the brands of a HEIC or AVIF file are in its first box
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
# formats that are not supported, for messages
UNSUPPORTED = (
    (b"\0\0\0\x0cjP  \r\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"\0\0\1\0", "ICO"),
    (b"\0\0\2\0", "CUR"),
    (b"icns", "ICNS"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"\x01\xda", "SGI"),
    (b"\x59\xa6\x6a\x95", "Sun raster"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"gimp xcf", "XCF"),
    (b"AT&TFORM", "DjVu"),
    (b"P7\n", "PAM"),
    (b"PF\n", "PFM"),
    (b"Pf\n", "PFM"),
    (b"/* XPM */", "XPM"),
    (b"<svg", "SVG"),
    (b"IIRO", "a raw photo"),
    (b"IIU\0", "a raw photo"),
    (b"FUJIFILMCCD-RAW", "a raw photo"),
)
# sizes of the header after BMP's first 14 bytes; a text may begin with "BM" too
BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
# ISO/IEC 23008-12 and the AVIF specification: brands of still pictures and sequences
AVIF_BRANDS = frozenset((b"avif", b"avis"))
HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))


def sniff(head: bytes) -> str | None:
    """The format of a file, a key of `FORMATS`, by its first `HEAD_BYTES` bytes; None if it is not supported."""
    for start, kind in STARTS:
        if head.startswith(start):
            # Canon's raw photos look like TIFF except for this mark
            return None if kind == "TIFF" and head[8:10] == b"CR" else kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in BMP_HEADERS:
        return "BMP"
    if head[:1] == b"P" and head[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6") and head[2:3] in b" \t\r\n\v\f#":
        return "PPM" if len(head) > 2 else None
    return _by_brand(head) if head[4:8] == b"ftyp" else None


def unsupported_format(head: bytes) -> str | None:
    """The name of an unsupported image format; None if the first bytes are not those of an image."""
    for start, name in UNSUPPORTED:
        # in icons the number of pictures follows
        if head.startswith(start) and (name not in ("ICO", "CUR") or 0 < int.from_bytes(head[4:6], "little") < 256):
            return name
    if head[4:8] == b"ftyp" and head[8:12] == b"crx ":
        return "a raw photo"
    # ZSoft's PCX: version, encoding, bits per sample
    if len(head) > 3 and head[0] == 10 and head[1] in (0, 2, 3, 4, 5) and head[2] == 1 and head[3] in (1, 2, 4, 8):
        return "PCX"
    return "TGA" if _is_tga(head) else None


def _is_tga(head: bytes) -> bool:
    """Whether the fields of a TGA header are consistent; the format has no magic number."""
    if len(head) < 18:
        return False
    has_map, kind, bits = head[1], head[2], head[16]
    mapped, sides = head[3:8], (head[12:14], head[14:16])
    fits_map = mapped[2:4] != b"\0\0" and mapped[4] in (15, 16, 24, 32) if has_map == 1 else not any(mapped)
    wanted = {1: (8, 16), 2: (15, 16, 24, 32), 3: (8, 16)}.get(kind & ~8, ())
    return has_map == (kind & ~8 == 1) and fits_map and bits in wanted and all(map(any, sides)) and head[17] < 64


def _by_brand(head: bytes) -> str | None:
    """AVIF or HEIF, by the major brand or else by the first known compatible brand."""
    end = min(len(head), int.from_bytes(head[:4], "big"))
    for brand in (head[8:12], *(head[place : place + 4] for place in range(16, end - 3, 4))):
        if brand in AVIF_BRANDS:
            return "AVIF"
        if brand in HEIF_BRANDS:
            return "HEIF"
    return None
