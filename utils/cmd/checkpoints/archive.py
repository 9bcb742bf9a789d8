"""Zip files as torch.save writes them: where each record lies, nothing unpacked."""

import struct
from typing import BinaryIO

from .faults import DamagedError
from .mapped import Mapped, Record

END = struct.Struct("<4s4H2LH")
END_64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR = struct.Struct("<4sLQL")
ENTRY = struct.Struct("<4s4B4HL2L5H2L")
LOCAL = struct.Struct("<4s5HL2L2H")
CRC_IN_ENTRY, CRC_IN_LOCAL = 16, 14  # where these two keep the checksum
LONGEST_COMMENT = 1 << 16
UNSAID, UNSAID_SHORT = 0xFFFFFFFF, 0xFFFF  # stands for a number too large for its field
HAS_DESCRIPTOR, ENCRYPTED = 8, 1


def read_archive(file: Mapped, start: int = 0, length: int | None = None) -> dict[str, Record]:
    """The records of a zip file by name.

    Args:
        start: where in the file it begins.
        length: its length in bytes; None is up to the end.

    Raises DamagedError if it is incomplete or contradicts itself.
    """
    length = file.size - start if length is None else length
    directory, position, count = _directory(file, start, length)
    with file.path.open("rb") as content:
        records = _records(file, content, start, directory, position, count)
    _require_apart(records)
    if records and not any(record.crc for record in records.values()):
        for record in records.values():  # torch.serialization.set_crc32_options(False)
            record.crc, record.crc_places = None, ()
    return records


def _records(
    file: Mapped, content: BinaryIO, start: int, directory: bytes, position: int, count: int
) -> dict[str, Record]:
    """The records that a table of contents names.

    Args:
        content: the file, open.
        position: where in it the table begins.
        count: how many records it should name.
    """
    records: dict[str, Record] = {}
    at = 0
    for _ in range(count):
        fields = _unpacked(ENTRY, directory, at, b"PK\x01\x02")
        flags, method, crc, packed, size = (fields[i] for i in (5, 6, 9, 10, 11))
        name_length, extra_length, comment_length, local = (fields[i] for i in (12, 13, 14, 18))
        name = directory[at + ENTRY.size : at + ENTRY.size + name_length]
        extra = directory[at + ENTRY.size + name_length :][:extra_length]
        size, packed, local = _long(extra, size, packed, local)
        data = _data(content, start + local, name)
        if data + packed > position:
            raise DamagedError("a record leaves the file")
        key = name.decode("utf-8", "backslashreplace")
        if key in records:
            raise DamagedError(f"it has two records {key}")
        places = (
            position + at + CRC_IN_ENTRY,
            data + packed + 4 if flags & HAS_DESCRIPTOR else start + local + CRC_IN_LOCAL,
        )
        odd = bool(method) or packed != size or bool(flags & ENCRYPTED)
        records[key] = Record(file, key, data, packed, crc, places, odd)
        at += ENTRY.size + name_length + extra_length + comment_length
    if at != len(directory):
        raise DamagedError("its table of contents is of another length")
    return records


def _directory(file: Mapped, start: int, length: int) -> tuple[bytes, int, int]:
    """The table of contents, its position in the file, and how many records it names."""
    tail_start = max(0, length - END.size - LONGEST_COMMENT)
    tail = file.at(start + tail_start, length - tail_start)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0:
        raise DamagedError("its end is missing")
    *_, count, size, offset, comment = _unpacked(END, tail, at, b"PK\x05\x06")
    if at + END.size + comment != len(tail):
        raise DamagedError("its end is of another length")
    end = tail_start + at
    if count == UNSAID_SHORT or UNSAID in (size, offset):
        locator = file.at(start + max(0, end - LOCATOR.size), LOCATOR.size)
        end = _unpacked(LOCATOR, locator, 0, b"PK\x06\x07")[2]
        long_end = file.at(start + end, END_64.size)
        count, size, offset = _unpacked(END_64, long_end, 0, b"PK\x06\x06")[-3:]
    if offset + size > end:
        raise DamagedError("its table of contents leaves the file")
    return file.at(start + offset, size), start + offset, count


def _data(content: BinaryIO, position: int, name: bytes) -> int:
    """Where a record's bytes begin, by the header before them."""
    content.seek(position)
    header = content.read(LOCAL.size + len(name))
    *_, name_length, extra_length = _unpacked(LOCAL, header, 0, b"PK\x03\x04")
    if header[LOCAL.size :] != name or name_length != len(name):
        raise DamagedError("a record's name differs from the table of contents")
    return position + LOCAL.size + name_length + extra_length


def _long(extra: bytes, *numbers: int) -> list[int]:
    """Numbers with those that were too large for their field taken from the extra one."""
    longs: list[int] = []
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            longs = [value for (value,) in struct.iter_unpack("<Q", extra[4 : 4 + length // 8 * 8])]
        extra = extra[4 + length :]
    missing = sum(number == UNSAID for number in numbers)
    if missing > len(longs):
        raise DamagedError("a record's length is missing")
    rest = iter(longs)
    return [next(rest) if number == UNSAID else number for number in numbers]


def _require_apart(records: dict[str, Record]) -> None:
    """Raise DamagedError if records share bytes, by which a small file could unpack to a large."""
    end = 0
    for record in sorted(records.values(), key=lambda record: record.start):
        if record.start < end:
            raise DamagedError("its records unpack to more than it is")
        end = record.start + record.length


def _unpacked(layout: struct.Struct, content: bytes, at: int, mark: bytes) -> tuple:
    if len(content) < at + layout.size:
        raise DamagedError("it is incomplete")
    fields = layout.unpack_from(content, at)
    if fields[0] != mark:
        raise DamagedError("its table of contents is not one")
    return fields
