"""Messages, encoded by hand (protobuf.dev, "Encoding"): a field is its number and kind, and then what belongs to it."""


def number(value):
    value %= 1 << 64
    coded = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        coded.append(low | (0x80 if value else 0))
        if not value:
            return bytes(coded)


def message(**parts):
    """Fields by their numbers, as f1=…: text, bytes, numbers, lists of these, and maps of text."""
    coded = b""
    for name, part in parts.items():
        tag = int(name[1:]) << 3
        if isinstance(part, dict):
            part = [message(f1=key, f2=value) for key, value in part.items()]
        for one in part if isinstance(part, list) else [part]:
            if isinstance(one, int):
                coded += number(tag) + number(one)
            else:
                one = one.encode() if isinstance(one, str) else one
                coded += number(tag | 2) + number(len(one)) + one
    return coded
