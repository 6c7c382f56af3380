"""What a disk may hold: headers, and the mark of a finished volume."""

import copy
import hashlib
import hmac
import json
import struct

from seed import VECTORS

COPY, BINARY = 16 * 1024, 4096
# Two copies of the metadata and the one keyslot in use.
HEADER = 2 * COPY + 258048
LUKS_UUID = b"7a5b5a0e-3f5c-4c0b-9a34-5d1c2f0e8b61"


def header():
    """The metadata that cryptsetup wrote, and what somebody could make of it."""
    raw = (VECTORS / "headers" / "base.bin").read_bytes()[: 2 * COPY].rstrip(b"\0")
    text = raw[BINARY:COPY].split(b"\0")[0].decode()

    def changed(change):
        metadata = json.loads(text)
        change(metadata)
        return json.dumps(metadata, separators=(",", ":"))

    def at(path, value):
        def change(metadata):
            *way, last = path.split("/")
            for part in way:
                metadata = metadata[part]
            metadata[last] = value

        return changed(change)

    def three(metadata):
        for number in (1, 2):
            slot = copy.deepcopy(metadata["keyslots"]["0"])
            slot["area"]["offset"] = str(32768 + number * 258048)
            metadata["keyslots"][str(number)] = slot
        metadata["digests"]["0"]["keyslots"] = ["0", "1", "2"]

    def two_segments(metadata):
        metadata["segments"]["1"] = metadata["segments"]["0"]

    def another(metadata):
        three(metadata)
        metadata["keyslots"]["3"] = metadata["keyslots"]["2"]

    second = bytes(COPY) + raw[COPY : COPY + 264]
    differ = bytearray(raw)
    differ[COPY + BINARY + 100] ^= 1
    return {
        "good-cryptsetup": raw,
        "good-json": text,
        "good-json-three-keyslots": changed(three),
        "bad-json-more-iterations": at("keyslots/0/kdf/iterations", 4294967295),
        "good-json-spaced": json.dumps(json.loads(text), indent=1),
        "bad-empty": b"",
        "bad-magic-alone": b"LUKS\xba\xbe\0\x02",
        "bad-first-copy-alone": raw[:COPY].rstrip(b"\0"),
        "bad-second-copy-alone": second,
        "bad-copies-differ": bytes(differ),
        "bad-luks1": b"LUKS\xba\xbe\0\x01" + bytes(64),
        "bad-xfs": b"XFSB" + bytes(64),
        "bad-ext4": bytes(1080) + b"\x53\xef",
        "bad-noise": hashlib.sha512(b"noise").digest(),
        "bad-json-torn": text[: len(text) // 2],
        "bad-json-number": "{1}",
        "bad-json-deep": '{"a":' * 200,
        "bad-json-null-cipher": at("segments/0/encryption", "cipher_null-ecb"),
        "bad-json-empty-cipher": at("segments/0/encryption", ""),
        "bad-json-null-keyslot": at("keyslots/0/area/encryption", "cipher_null-ecb"),
        "bad-json-elsewhere": at("segments/0/offset", "2097152"),
        "bad-json-sector": at("segments/0/sector_size", 512),
        "bad-json-integrity": at("segments/0/integrity", {"type": "none"}),
        "bad-json-segment-type": at("segments/0/type", "linear"),
        "bad-json-two-segments": changed(two_segments),
        "bad-json-four-keyslots": changed(another),
        "bad-json-no-keyslot": at("keyslots", {}),
        "bad-json-outside": at("keyslots/0/area/offset", "0"),
        "bad-json-overflow": at("keyslots/0/area/size", "18446744073709551615"),
        "bad-json-iterations": at("keyslots/0/kdf/iterations", 999),
        "bad-json-kdf": at("keyslots/0/kdf/type", "argon2id"),
        "bad-json-stripes": at("keyslots/0/af/stripes", 1),
        "bad-json-priority": at("keyslots/0/priority", 0),
        "bad-json-slot-256": changed(lambda metadata: metadata["keyslots"].update({"256": {}})),
        "bad-json-token": at("tokens/0", {"type": "luks2-keyring", "keyslots": ["0"], "key_description": "x"}),
        "bad-json-digest-for-others": at("digests/0/keyslots", ["0", "1"]),
        "bad-json-two-digests": changed(lambda metadata: metadata["digests"].update({"1": metadata["digests"]["0"]})),
        "bad-json-areas": at("config/keyslots_size", "786433"),
        "bad-json-requirement": at("config/requirements", {"mandatory": ["online-reencrypt"]}),
    }


def fields(label, *rest):
    return b"".join(struct.pack(">I", len(part)) + part for part in (label, *rest))


def mac(key, message):
    return hmac.new(key, message, hashlib.sha256).digest()


def mark(text):
    """The finish mark of the header around `text`, under the key that the target has (src/key/derive.rs)."""
    area = bytearray(HEADER)
    for magic, offset in ((b"LUKS\xba\xbe", 0), (b"SKUL\xba\xbe", COPY)):
        area[offset : offset + 16] = magic + b"\0\x02" + struct.pack(">Q", COPY)
        area[offset + 72 : offset + 78] = b"sha256"
        area[offset + 168 : offset + 204] = LUKS_UUID
        area[offset + 256 : offset + 264] = struct.pack(">Q", offset)
        area[offset + BINARY : offset + BINARY + len(text)] = text.encode()

    def finished(dek):
        # HKDF-SHA256 without a salt, one block.
        key = mac(mac(bytes(32), dek), fields(b"coffer/v1/header-mac") + b"\x01")
        return b"coffer finished\n" + mac(key, fields(b"coffer/v1/finished", mac(key, bytes(area))))

    own = finished(b"\x5a" * 32)
    return {
        "good-own": own,
        "good-own-whole": own.ljust(4096, b"\0"),
        "bad-empty": b"",
        "bad-zeros": bytes(64),
        "bad-of-another-key": finished(b"\xa5" * 32),
        "bad-magic-alone": own[:16],
        "bad-cut": own[:-1],
        "bad-one-bit": own[:-1] + bytes([own[-1] ^ 1]),
        "bad-and-more": own + b"x",
        "bad-last-byte": bytes(4095) + b"\x01",
    }
