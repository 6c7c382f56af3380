"""What may arrive at either end of the key service's wire."""

import struct

from seed.disk import LUKS_UUID
from seed.protobuf import message

PARAMETERS = (
    '{"content":{"type":"filesystem","fsType":"ext4"},"cipher":"aes-xts-plain64","sectorSize":4096,'
    '"integrity":"none","discard":"false"}'
)


def keyservice():
    def requests(*pairs):
        return b"".join(bytes([which]) + struct.pack(">H", len(content)) + content for which, content in pairs)

    def create(**parts):
        return 0, message(**{"f1": "vol-1", "f2": "pvc-1", "f3": PARAMETERS, "f4": "n1", **parts})

    def to(which, volume="vol-1", **parts):
        return which, message(f1=volume, **parts)

    def ready(generation=1, attempt=1, tag=b"\x09" * 32):
        return to(4, f2=generation, f3=attempt, f4=tag)

    get, describe, begin, destroy, everything = to(1), to(2), to(3, f2=1), to(5, f2=1), (6, b"")
    context = {"team": "blue", "empty": ""}
    return {
        "good-life": requests(create(), get, describe, begin, ready(), ready(), get, everything, destroy, create()),
        "good-again": requests(create(), begin, begin, ready(attempt=2), destroy, create(), to(3, f2=2), ready(2)),
        "good-cluster-key": requests(create(f6="cluster", f5="blue", f7=context), get, begin, ready(), get),
        "good-block": requests(create(f3=PARAMETERS.replace('"filesystem","fsType":"ext4"', '"block"'), f4="")),
        "good-pages": requests(create(), create(f1="vol-2"), create(f1="\u00fcnicode"), (6, message(f1="vol-1", f2=1))),
        "good-deadline": requests((7, b"90S"), create(), (7, b"99999999H"), get, (7, b"0n"), get, (7, b"x\xff"), get),
        "good-nothing": requests(everything, describe, destroy),
        "bad-empty": b"",
        "bad-get": requests(get),
        "bad-destroyed": requests(create(), destroy, get),
        "bad-skipped": requests(create(), ready()),
        "bad-late": requests(create(), begin, begin, ready()),
        "bad-other-tag": requests(create(), begin, ready(), ready(tag=b"\x08" * 32)),
        "bad-short-tag": requests(create(), begin, ready(tag=b"x")),
        "bad-formatted-again": requests(create(), begin, ready(), begin),
        "bad-generation": requests(create(), to(3, f2=4294967295)),
        "bad-differs": requests(create(), create(f4="n2")),
        "bad-reserved": requests(create(f7={"cluster": "x"})),
        "bad-provider": requests(create(f6="none")),
        "bad-parameters": requests(create(f3="{}")),
        "bad-more-parameters": requests(create(f3=PARAMETERS[:-1] + ',"more":1}')),
        "bad-mkfs": requests(create(f3=PARAMETERS[:-1] + ',"mkfsOptions":["-d","/etc"]}')),
        "bad-id": requests(create(f1="a\nb")),
        "bad-large": requests(create(f2="x" * 4097)),
        "bad-after": requests((6, message(f1="\u0001"))),
        "bad-deadline": requests((7, b"\n")),
        "bad-torn": requests(create())[:-1],
    }


def reply():
    uuid = LUKS_UUID.decode()

    def info(**parts):
        names = {"f9": "pvc-1", "f10": "main", "f11": "k"}
        return message(**{"f1": "vol-1", "f2": 1, "f3": 1, "f4": uuid, "f5": PARAMETERS, **names, **parts})

    return {
        "good-prepared": info(),
        "good-ready": info(f3=3, f6=b"\x07" * 32, f7=4294967295, f8="n1"),
        "good-destroyed": info(f3=4, f11=""),
        "good-uuid": info(f4="{" + uuid.upper() + "}"),
        "good-block": info(f5='{"content": {"type": "block"}, ' + PARAMETERS.split("},", 1)[1]),
        "bad-nothing": b"",
        "bad-state": info(f3=0),
        "bad-unknown-state": info(f3=-1),
        "bad-uuid": info(f4="x"),
        "bad-parameters": info(f5="null"),
        "bad-cipher": info(f5=PARAMETERS.replace("aes-xts-plain64", "cipher_null")),
        "bad-tag": info(f6=b"\x07" * 31),
        "bad-id": info(f1=""),
        "bad-torn": info()[:-1],
    }
