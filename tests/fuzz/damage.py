"""Ways to damage a valid file: its bytes, and what stands in it where its format is known."""

from __future__ import annotations

import csv
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import yaml

Damage = Callable[[bytes, random.Random], bytes]
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 10**30, 0.0, -0.5, 1e-30, 1e300, float("nan"), float("inf"),
    "", " ", "x", "nan", "1e999", "-1", "\x00", "\x1b[2J", "../../outside", "/etc/passwd", "a" * 5000, "é\U0001f9e0",
    "<script>", "$\\frac{a$", [], {}, [[]], [1, 2, 3], [1, [2, [3]]], {"": None}, {"class_path": "payload.x"},
    [0] * 3000,
)  # fmt: skip
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
"""At the ends of what lengths and counts can be."""

ODD_YAML = (
    b"\nx: !!python/object/apply:os.system ['true']\n", b"\nself: &s [*s]\n", b"\n? [a]\n: b\n", b"\n<<: [1]\n",
    b"\nx: " + b"[" * 5000, b"\nx: " + b"{a: " * 5000, b"\n\tx: 1\n", b"\nx: 2001-99-99\n", b"\nx: 1:2:3\n",
)  # fmt: skip

DEEP = 3000
"""Levels: more than Python may recurse."""


def flip(content: bytes, dice: random.Random) -> bytes:
    """Turn some bits."""
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 8, 64))):
        if changed:
            changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def cut(content: bytes, dice: random.Random) -> bytes:
    """Drop the end."""
    return content[: dice.randrange(len(content) + 1)]


def remove(content: bytes, dice: random.Random) -> bytes:
    """Drop a piece."""
    start, stop = _piece(content, dice)
    return content[:start] + content[stop:]


def repeat(content: bytes, dice: random.Random) -> bytes:
    """Let a piece stand several times."""
    start, stop = _piece(content, dice)
    return content[:stop] + content[start:stop] * dice.choice((1, 2, 50)) + content[stop:]


def insert(content: bytes, dice: random.Random) -> bytes:
    """Put something foreign in."""
    place, size = dice.randrange(len(content) + 1), dice.choice((1, 2, 4, 16, 512, 4096))
    block = dice.choice((bytes(size), b"\xff" * size, dice.randbytes(size)))
    return content[:place] + block + content[place:]


def overwrite(content: bytes, dice: random.Random) -> bytes:
    """Put something foreign in the place of what was there."""
    place, size = dice.randrange(len(content) + 1), dice.choice((1, 4, 16, 512))
    return content[:place] + dice.choice((bytes(size), b"\xff" * size, dice.randbytes(size))) + content[place + size :]


def extreme(content: bytes, dice: random.Random) -> bytes:
    """Put a number at the end of its range where a length or a count may stand, early in the file more often."""
    end = len(content) if dice.random() < 0.4 else min(len(content), 512)
    place = dice.randrange(end + 1)
    form, bits = dice.choice((("H", 16), ("I", 32), ("I", 32), ("Q", 64)))
    value = struct.pack(dice.choice("<>") + form, dice.choice(NUMBERS) & (2**bits - 1))
    return content[:place] + value + content[place + len(value) :]


def _piece(content: bytes, dice: random.Random) -> tuple[int, int]:
    start = dice.randrange(len(content) + 1)
    return start, min(len(content), start + dice.choice((1, 2, 4, 16, 256, 4096)))


_BYTES: tuple[Damage, ...] = (flip, cut, remove, repeat, insert, overwrite, extreme, extreme, flip)


def of_bytes(content: bytes, dice: random.Random) -> bytes:
    """One damage of the bytes, sometimes several."""
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        content = dice.choice(_BYTES)(content, dice)
    return content


def either(*damages: Damage) -> Damage:
    """One of several."""
    return lambda content, dice: dice.choice(damages)(content, dice)


def within(unpack: Callable[[bytes], bytes], pack: Callable[[bytes], bytes], damage: Damage) -> Damage:
    """Damage what is packed, and pack it again."""
    return lambda content, dice: pack(damage(unpack(content), dice))


def of_plain(value: Any, dice: random.Random) -> Any:
    """A copy of nested dicts and lists in which one place is another: replaced, removed, doubled, or far too deep."""
    value = json.loads(json.dumps(value))
    places = list(_places(value))
    if not places or dice.random() < 0.03:
        return dice.choice(ODD)
    holder, key = dice.choice(places)
    kind = dice.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        holder[key] = [holder[key]] * dice.choice((1, 2, 1000))
    elif kind == 2 and isinstance(holder, dict):
        holder[str(dice.choice(ODD))[:100]] = holder.pop(key)
    elif kind == 3 and dice.random() < 0.2:
        deep: Any = holder[key]
        for _ in range(dice.choice((20, 400))):
            deep = dice.choice(([deep], {"a": deep}))
        holder[key] = deep
    else:
        other = dice.choice(places)
        holder[key] = dice.choice(ODD) if dice.random() < 0.8 else json.loads(json.dumps(other[0][other[1]]))
    return value


def _places(value: Any) -> Any:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(entries):
        yield value, key
        yield from _places(inner)


def of_json(content: bytes, dice: random.Random) -> bytes:
    """JSON that says something else, or is none."""
    kind = dice.randrange(12)
    if kind == 0:
        return of_bytes(content, dice)
    if kind == 1:
        opening, closing = dice.choice((("[", "]"), ('{"a":', "}")))
        depth = DEEP * dice.choice((1, 30))
        return (opening * depth + "1" + closing * depth).encode()
    if kind == 2:
        return content.replace(b":", b": " + b"9" * dice.choice((400, 6000)) + b', "x":', 1)
    changed = of_plain(json.loads(content), dice)
    text = json.dumps(changed, ensure_ascii=dice.random() < 0.8)
    return text.encode(dice.choice(("utf-8", "utf-8", "utf-8", "utf-16")), errors="surrogatepass")


def of_json_lines(content: bytes, dice: random.Random) -> bytes:
    """One line of JSON that says something else."""
    lines = content.splitlines(keepends=True)
    place = dice.randrange(len(lines))
    lines[place] = of_json(lines[place], dice) + b"\n"
    return b"".join(lines)


def of_yaml(content: bytes, dice: random.Random) -> bytes:
    """YAML that says something else, holds itself, grows without bounds, or names code."""
    kind = dice.randrange(10)
    if kind == 0:
        return of_bytes(content, dice)
    if kind == 1:
        levels, wide = dice.choice(((27, 2), (9, 9), (60, 2), (12, 20)))
        lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * wide)}]" for i in range(1, levels))]
        return "\n".join([*lines, content.decode()]).encode()
    if kind == 2:
        return content + dice.choice(ODD_YAML)
    changed = of_plain(yaml.safe_load(content), dice)
    try:
        return yaml.safe_dump(changed, allow_unicode=True, sort_keys=False).encode(errors="surrogatepass")
    except (RecursionError, yaml.YAMLError):
        return json.dumps(changed).encode()


def of_csv(content: bytes, dice: random.Random) -> bytes:
    """A table with an odd cell, row, quote or header."""
    if dice.random() < 0.2:
        return of_bytes(content, dice)
    rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"))))
    for _ in range(dice.choice((1, 1, 3))):
        row = dice.choice(rows) if rows and dice.random() < 0.85 else rows[0] if rows else []
        place = dice.randrange(len(row) or 1)
        kind = dice.randrange(7)
        if kind == 0 and row:
            del row[place]
        elif kind == 1:
            row.insert(place, str(dice.choice(ODD)))
        elif kind == 2 and rows:
            rows.insert(dice.randrange(len(rows)), list(row))
        elif kind == 3 and row:
            row[place] = ",".join(row) * dice.choice((1, 200))
        elif row:
            row[place] = str(dice.choice(ODD))
    stream = io.StringIO()
    csv.writer(stream, delimiter=dice.choice(",,,,;\t"), lineterminator=dice.choice(("\n", "\r\n", "\r"))).writerows(
        rows
    )
    text = stream.getvalue()
    if dice.random() < 0.2:
        place = dice.randrange(len(text) + 1)
        text = text[:place] + dice.choice("\"'\x00\n,") + text[place:]
    return text.encode(dice.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32")), errors="surrogatepass")


def of_png(content: bytes, dice: random.Random) -> bytes:
    """A chunk with another content under a checksum that is right."""
    if dice.random() < 0.4:
        return of_bytes(content, dice)
    chunks, place = [], 8
    while place + 12 <= len(content):
        (size,) = struct.unpack_from(">I", content, place)
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + size]))
        place += 12 + size
    number = dice.randrange(len(chunks)) if dice.random() < 0.5 else 0
    kind, body = chunks[number]
    if kind == b"IHDR" and dice.random() < 0.6:
        width, height, *rest = struct.unpack(">IIBBBBB", body)
        sizes = (0, 1, width + 1, 4096, 20000, 2**31 - 1, 2**32 - 1)
        body = struct.pack(
            ">IIBBBBB", *dice.choice(((dice.choice(sizes), height), (width, dice.choice(sizes)), (20000, 20000))), *rest
        )
    elif kind == b"IDAT" and dice.random() < 0.3:
        body = zlib.compress(bytes(dice.choice((1 << 10, 1 << 26))))
    else:
        body = of_bytes(body, dice)
    chunks[number] = (kind, body)
    if dice.random() < 0.2:
        chunks.insert(
            dice.randrange(len(chunks)), (dice.choice((b"zTXt", b"iCCP", b"acTL", b"eXIf")), dice.randbytes(64))
        )
    return content[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def of_nifti(content: bytes, dice: random.Random) -> bytes:
    """A NIfTI-1 file with an odd field in its header, or damaged bytes."""
    if dice.random() < 0.3:
        return of_bytes(content, dice)
    for _ in range(dice.choice((1, 1, 2))):
        place, form, values = dice.choice(
            (
                (0, "i", (0, 540, -1, 1543569408)),
                (40, "h", (0, -1, 2, 5, 7, 8)),
                (dice.choice(range(42, 56, 2)), "h", (0, -1, 1, 2, 1500, 32767, -32768)),
                (70, "h", (0, 1, 2, 16, 32, 64, 128, 512, 1536, 1792, 2304, -7)),
                (72, "h", (0, 1, 8, 32, 64, 999, -1)),
                (dice.choice(range(76, 108, 4)), "f", (0.0, -1.0, float("nan"), float("inf"), 1e-38, 1e38)),
                (108, "f", (0.0, -1.0, 1e9, 352.5, float("nan"), float("inf"))),
                (dice.choice((112, 116)), "f", (0.0, float("nan"), float("inf"), 1e38, -1.0)),
                (dice.choice((252, 254)), "h", (0, 1, 2, -1, 30000)),
                (dice.choice(range(256, 328, 4)), "f", (0.0, -1.0, 2.0, float("nan"), float("inf"), 1e30)),
                (344, "i", (0, -1, 0x312B6E)),
            )
        )
        patch = struct.pack(f"<{form}", dice.choice(values))
        content = content[:place] + patch + content[place + len(patch) :]
    return content
