"""Messages byte by byte, as no honest program writes them."""


def number(value: int) -> bytes:
    """As protobuf writes it."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def field(place: int, content: bytes) -> bytes:
    """A field (1 to 15) of bytes."""
    return bytes([place << 3 | 2]) + number(len(content)) + content
