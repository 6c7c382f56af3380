"""The tamper corpus: what somebody could make of a LUKS2 header of Coffer's, and what Coffer's list says of each.

Offsets and names: LUKS2 On-Disk Format Specification 1.1.3, chapters 2 (binary header) and 3 (JSON area).
"""

import hashlib
import json

KIB = 1024
# As src/node/header/mod.rs lays a device out.
COPY = 16 * KIB
BINARY = 4 * KIB
AREA = COPY - BINARY
KEYSLOTS = 768 * KIB
HEADER = 2 * COPY + KEYSLOTS
DATA = 1024 * KIB
# 64 bytes of key in 4000 stripes, in whole 4 KiB.
KEYSLOT = 252 * KIB
KEPT = 2 * COPY + KEYSLOT

UUID = "7a5b5a0e-3f5c-4c0b-9a34-5d1c2f0e8b61"
OTHER_UUID = "11111111-2222-4333-8444-555555555555"
DEK = hashlib.sha256(b"the DEK of Coffer's tamper corpus").digest()
SECTOR = 4096

# Where the fields of the binary header lie.
VERSION, SIZE, SEQUENCE, LABEL, ALGORITHM, SALT = 6, 8, 16, 24, 72, 104
UUID_AT, SUBSYSTEM, OFFSET, PADDING, CHECKSUM, PADDING_4096 = 168, 208, 256, 264, 448, 512

OURS, NULL = "aes-xts-plain64", "cipher_null-ecb"

# What src/node/header/metadata.rs says.
MAGIC = "does not begin with the magic number of its place"
PLACE = "a copy of it has another size or place"
DIFFER = "its two copies differ"
AREAS = "its areas have other sizes"
ENCRYPTION = "its segment is encrypted in another way"
ELSEWHERE = "its segment lies elsewhere"
SEGMENTS = "it does not have exactly one segment"
SLOTS = "it does not have one to three keyslots"
SLOT_KIND = "a keyslot is of another kind or size"
SLOT_SPLIT = "a keyslot is split in another way"
SLOT_CIPHER = "a keyslot is encrypted in another way"
SLOT_OUTSIDE = "a keyslot lies outside the header"
SLOT_KDF = "a keyslot has another key derivation"
DIGESTS = "it does not have exactly one digest"
DIGEST_KIND = "its digest is of another kind"
DIGEST_FOR = "its digest is for other keyslots or segments"
# The list lets the header pass, and the MAC alone tells.
PASSES = None
SLOT_PLACE = "a keyslot has another size or place"
SLOT_SALT = "a keyslot has a salt of another length"
DIGEST_LENGTH = "its digest is of another length"
LABELLED = "a copy of it has a label or a subsystem"


class Head:
    """The start of a device, up to the end of the first keyslot."""

    def __init__(self, data):
        self.data = bytearray(data)

    def text(self, copy):
        return self.area(copy).split(b"\0")[0].decode()

    def area(self, copy):
        return bytes(self.data[copy * COPY + BINARY : (copy + 1) * COPY])

    def fill(self, copy, content):
        assert len(content) <= AREA, "the JSON area is too small"
        self.data[copy * COPY + BINARY : (copy + 1) * COPY] = content.ljust(AREA, b"\0")

    def write(self, offset, content):
        self.data[offset : offset + len(content)] = content

    def seal(self, algorithm="sha256"):
        """Makes both checksums right: over a copy whose checksum is zeros."""
        for copy in (0, COPY):
            self.write(copy + CHECKSUM, bytes(64))
            digest = hashlib.new(algorithm, self.data[copy : copy + COPY]).digest()
            self.write(copy + CHECKSUM, digest)


BOTH, FIRST, SECOND = (0, 1), (0,), (1,)


def area(change, copies=BOTH):
    """Changes the JSON area as bytes."""

    def edit(head):
        for copy in copies:
            head.fill(copy, change(head.text(copy).encode()))

    return edit


def text(old, new, copies=BOTH):
    """Changes the JSON as text, at the first place."""

    def change(content):
        assert old.encode() in content, old
        return content.replace(old.encode(), new.encode(), 1)

    return area(change, copies)


def tree(change, copies=BOTH):
    """Changes the JSON as objects, and writes it as cryptsetup does."""

    def edit(content):
        metadata = json.loads(content)
        change(metadata)
        return compact(metadata).encode()

    return area(edit, copies)


def put(path, value, copies=BOTH):
    """Sets what lies at a path in the JSON."""
    *folders, last = path.split("/")

    def change(metadata):
        for folder in folders:
            metadata = metadata[folder]
        metadata[last] = value

    return tree(change, copies)


def drop(path):
    """Takes out what lies at a path in the JSON."""
    *folders, last = path.split("/")

    def change(metadata):
        for folder in folders:
            metadata = metadata[folder]
        del metadata[last]

    return tree(change)


def binary(offset, content, copies=BOTH):
    """Changes a field of the binary header."""

    def edit(head):
        for copy in copies:
            head.write(copy * COPY + offset, content)

    return edit


def together(*edits):
    def edit(head):
        for one in edits:
            one(head)

    return edit


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def number(value, length=8):
    return value.to_bytes(length, "big")


def keyslots(*wanted, listed):
    """Keyslots by name and offset, copies of the first one, and the ones that the digest lists."""

    def change(metadata):
        first = metadata["keyslots"]["0"]
        metadata["keyslots"] = {
            name: {**first, "area": {**first["area"], "offset": str(offset)}} for name, offset in wanted
        }
        metadata["digests"]["0"]["keyslots"] = listed

    return tree(change)


def twice(kind, change, first):
    """An object of the JSON under one name twice, once as it is and once changed."""

    def edit(metadata):
        own = metadata[kind]["0"]
        other = json.loads(compact(own))
        change(other)
        pair = [other, own] if first else [own, other]
        # A name that is there once, so that both can be written; it is set right in the text.
        metadata[kind] = {"0": pair[0], "again": pair[1]}

    return together(tree(edit), text('"again"', '"0"'))


def again(kind, name):
    """A second object beside the first one, with the same content."""
    return tree(lambda metadata: metadata[kind].__setitem__(name, metadata[kind]["0"]))


def segment(**fields):
    return tree(lambda metadata: metadata["segments"]["0"].update(fields))


def keyslot(part, **fields):
    return tree(lambda metadata: metadata["keyslots"]["0"][part].update(fields))


def digest(**fields):
    return tree(lambda metadata: metadata["digests"]["0"].update(fields))


def null_cipher(other):
    other["encryption"] = NULL


def null_keyslot(other):
    other["area"]["encryption"] = NULL


def exchange(head):
    """Each copy in the other's place."""
    head.data[: 2 * COPY] = head.data[COPY : 2 * COPY] + head.data[:COPY]


INTEGRITY = {"type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none"}
ARGON2 = {"type": "argon2id", "time": 4, "memory": 65536, "cpus": 1, "salt": "A" * 43 + "="}
TOKEN = {"type": "luks2-keyring", "keyslots": ["0"], "key_description": "somebody's"}


def metadata():
    """Cases with right checksums: a name, what the list says (PASSES for nothing), and the edit."""
    # The segment: what encrypts the data.
    yield "the data is encrypted with a null cipher", ENCRYPTION, segment(encryption=NULL)
    yield "the data is encrypted with another cipher", ENCRYPTION, segment(encryption="aes-cbc-essiv:sha256")
    yield "the cipher of the data ends with a NUL", ENCRYPTION, segment(encryption=OURS + "\0")
    yield "the cipher of the data is empty", ENCRYPTION, segment(encryption="")
    yield "the cipher of the data is there twice, a null cipher first", "duplicate field `encryption`", text(
        '"iv_tweak"', f'"encryption":"{NULL}","iv_tweak"'
    )
    yield "the segment is of kind linear", ENCRYPTION, segment(type="linear")
    yield "the segment has another tweak", ENCRYPTION, segment(iv_tweak="8")
    yield "the segment begins elsewhere", ELSEWHERE, segment(offset=str(2 * DATA))
    yield "the segment begins inside the header", ELSEWHERE, segment(offset=str(2 * COPY))
    yield "the segment has a fixed size", ELSEWHERE, segment(size=str(8 * DATA))
    yield "the segment has another sector size", "another sector size", segment(sector_size=512)
    yield "the segment has flags", "unknown field `flags`", segment(flags=["backup-final"])
    yield "the segment has integrity", "integrity that the record does not ask for", segment(integrity=INTEGRITY)
    yield "the segment has an integrity of null", PASSES, segment(integrity=None)
    yield "there is a second segment", SEGMENTS, again("segments", "1")
    yield "there is no segment", SEGMENTS, put("segments", {})
    yield "the segment is there twice, with a null cipher first", PASSES, twice("segments", null_cipher, first=True)
    yield "the segment is there twice, with a null cipher last", ENCRYPTION, twice("segments", null_cipher, first=False)
    yield "the segment has number 1, for which the digest is not", SEGMENTS, text('"segments":{"0"', '"segments":{"1"')
    yield "the segment has number 1, and the digest is for it", SEGMENTS, together(
        text('"segments":{"0"', '"segments":{"1"'), digest(segments=["1"])
    )

    # Keyslots.
    yield "the keyslot is encrypted with a null cipher", SLOT_CIPHER, keyslot("area", encryption=NULL)
    yield "the keyslot is encrypted with a shorter key", SLOT_CIPHER, keyslot("area", key_size=32)
    yield "the keyslot is there twice, with a null cipher first", PASSES, twice("keyslots", null_keyslot, first=True)
    yield "the keyslot is there twice, with a null cipher last", SLOT_CIPHER, twice(
        "keyslots", null_keyslot, first=False
    )
    yield "the key derivation has fewer iterations", SLOT_KDF, keyslot("kdf", iterations=999)
    yield "the key derivation has as many iterations as can be", SLOT_KDF, keyslot("kdf", iterations=2**32 - 1)
    yield "the key derivation has fewer than no iterations", "expected u32", keyslot("kdf", iterations=-1)
    yield "the key derivation has a fraction of iterations", "expected u32", keyslot("kdf", iterations=1000.5)
    yield "the key derivation has another hash", SLOT_KDF, keyslot("kdf", hash="sha1")
    yield "the key derivation is Argon2id", "unknown field `time`", put("keyslots/0/kdf", ARGON2)
    yield "the key derivation is Argon2id in name", SLOT_KDF, keyslot("kdf", type="argon2id")
    yield "the key derivation has an empty salt", SLOT_SALT, keyslot("kdf", salt="")
    yield "the key derivation has a salt that is no text", "Invalid symbol", area(
        lambda content: content.replace(b'"salt":"', b'"salt":"\xff', 1)
    )
    yield "the keyslot is of another kind", SLOT_KIND, put("keyslots/0/type", "reencrypt")
    yield "the keyslot holds a shorter key", SLOT_KIND, put("keyslots/0/key_size", 32)
    yield "the keyslot has a priority", "unknown field `priority`", put("keyslots/0/priority", 0)
    yield "the keyslot is not split", SLOT_SPLIT, keyslot("af", stripes=1)
    yield "the keyslot is split by another hash", SLOT_SPLIT, keyslot("af", hash="sha1")
    yield "the keyslot lies behind the header", SLOT_OUTSIDE, keyslot("area", offset=str(HEADER))
    yield "the keyslot ends behind the header", SLOT_OUTSIDE, keyslot("area", offset=str(HEADER - KEYSLOT + 4 * KIB))
    yield "the keyslot lies on the second copy of the metadata", SLOT_OUTSIDE, keyslot("area", offset=str(COPY))
    yield "the keyslot ends beyond all numbers", SLOT_OUTSIDE, keyslot("area", offset=str(2**64 - 4096))
    yield "the keyslot has a negative offset", SLOT_OUTSIDE, keyslot("area", offset="-32768")
    yield "the keyslot has an offset with a sign", SLOT_OUTSIDE, keyslot("area", offset="+32768")
    yield "the keyslot has an area that is too small for it", SLOT_PLACE, keyslot("area", size="4096")
    yield "the keyslot has the last page of the header", SLOT_PLACE, keyslot(
        "area", offset=str(HEADER - 4096), size="4096"
    )
    yield "a second keyslot is in the digest", PASSES, keyslots(("0", 32 * KIB), ("1", KEPT), listed=["0", "1"])
    yield "a second keyslot is not in the digest", DIGEST_FOR, keyslots(("0", 32 * KIB), ("1", KEPT), listed=["0"])
    yield "a second keyslot shares the area of the first", "two keyslots lie at one place", keyslots(
        ("0", 32 * KIB), ("1", 32 * KIB), listed=["0", "1"]
    )
    yield "there are four keyslots", SLOTS, keyslots(
        ("0", 32 * KIB), ("1", KEPT), ("2", KEPT + KEYSLOT), ("3", KEPT), listed=["0", "1", "2", "3"]
    )
    yield "there is no keyslot", SLOTS, keyslots(listed=[])
    yield "the keyslot has number 00", "invalid number", keyslots(("00", 32 * KIB), listed=["00"])

    # Digests, tokens, config.
    yield "the digest has fewer iterations", DIGEST_KIND, digest(iterations=999)
    yield "the digest has as many iterations as can be", DIGEST_KIND, digest(iterations=2**32 - 1)
    yield "the digest has another hash", DIGEST_KIND, digest(hash="sha1")
    yield "the digest is of another key", PASSES, digest(digest="A" * 43 + "=")
    # A digest or a salt of another length is one that cryptsetup 2.6 takes for right, whatever the key.
    yield "the digest is empty", DIGEST_LENGTH, digest(digest="")
    yield "the digest has a byte too many", DIGEST_LENGTH, digest(digest="A" * 44)
    yield "the digest has a shorter salt", DIGEST_LENGTH, digest(salt="AA==")
    yield "the digest is for another segment", DIGEST_FOR, digest(segments=["1"])
    yield "the digest is for no keyslot", DIGEST_FOR, digest(keyslots=[])
    yield "the digest has number 1", DIGESTS, text('"digests":{"0"', '"digests":{"1"')
    yield "there are two digests", DIGESTS, again("digests", "1")
    yield "there is no digest", DIGESTS, put("digests", {})
    yield "there is a token", "it holds a token", put("tokens/0", TOKEN)
    yield "there is a token that is null", "it holds a token", put("tokens/0", None)
    yield "the config allows discards", "unknown field `flags`", put("config/flags", ["allow-discards"])
    yield "the config has requirements", "unknown field `requirements`", put(
        "config/requirements", {"mandatory": ["online-reencrypt-v2"]}
    )
    yield "the config says another JSON size", AREAS, put("config/json_size", str(28 * KIB))
    yield "the config says another size of keyslots", AREAS, put("config/keyslots_size", str(KEYSLOTS - 4 * KIB))
    yield "the config is a list", PASSES, tree(
        lambda metadata: metadata.__setitem__("config", list(metadata["config"].values()))
    )

    # The form of the JSON.
    yield "there is an unknown key at the top", "unknown field `coffer`", put("coffer", {})
    yield "a key at the top is missing", "missing field `tokens`", drop("tokens")
    yield "a key at the top is there twice", "duplicate field `config`", text(
        '"config":', '"config":{"json_size":"12288","keyslots_size":"786432"},"config":'
    )
    yield "a value is written with an escape", PASSES, text('"type":"crypt"', '"type":"cr\\u0079pt"')
    yield "the JSON has a comment", "key must be a string", text('{"keyslots"', '{/**/"keyslots"')
    yield "the JSON has other quotes", "key must be a string", text('"config"', "'config'")
    yield "the JSON is cut off", "EOF while parsing", area(lambda content: content[: len(content) // 2])
    yield "the JSON is empty", "EOF while parsing", area(lambda _: b"")
    yield "a NUL ends the JSON early", "EOF while parsing", text('"tokens"', '\0"tokens"')
    yield "more JSON follows behind a NUL", PASSES, area(
        lambda content: content + b"\0" + content.replace(OURS.encode(), NULL.encode())
    )
    yield "more JSON follows", "trailing characters", area(lambda content: content + content)
    yield "spaces fill the JSON area to its last byte", PASSES, area(lambda content: content.ljust(AREA, b" "))
    yield "spaces inside fill the JSON area", PASSES, area(
        lambda content: b"{" + b" " * (AREA - 1 - len(content)) + content[1:]
    )

    # The two copies.
    yield "the first copy has a null cipher and is newer", DIFFER, together(
        put("segments/0/encryption", NULL, FIRST), binary(SEQUENCE, number(1000), FIRST)
    )
    yield "the second copy has a null cipher and is newer", DIFFER, together(
        put("segments/0/encryption", NULL, SECOND), binary(SEQUENCE, number(1000), SECOND)
    )
    yield "the second copy has something behind the JSON", DIFFER, binary(COPY - 1, b"x", SECOND)
    yield "the first copy is of LUKS1", MAGIC, binary(VERSION, number(1, 2), FIRST)
    yield "the second copy is of version 3", MAGIC, binary(VERSION, number(3, 2), SECOND)
    yield "both copies have the magic number of the first", MAGIC, binary(0, b"LUKS", SECOND)
    yield "both copies say another size", PLACE, binary(SIZE, number(2 * COPY))
    yield "the first copy says that it lies elsewhere", PLACE, binary(OFFSET, number(COPY), FIRST)
    yield "the second copy has another UUID", "a copy of it has another UUID", binary(
        UUID_AT, OTHER_UUID.encode(), SECOND
    )
    yield "the UUID has something behind its end", PASSES, binary(UUID_AT + 37, b"xyz")
    yield "the second copy is newer", PASSES, binary(SEQUENCE, number(1000), SECOND)
    yield "both copies are newer", PASSES, binary(SEQUENCE, number(1000))
    yield "there is a label", LABELLED, binary(LABEL, b"somebody's")
    yield "the second copy has a label", LABELLED, binary(LABEL, b"somebody's", SECOND)
    yield "there is a subsystem", LABELLED, binary(SUBSYSTEM, b"somebody's")
    yield "the copies have another salt", PASSES, binary(SALT, b"\xa5" * 64)
    yield "there is something in the padding before the checksum", PASSES, binary(PADDING, b"x" * 8)
    yield "there is something in the padding before the JSON", PASSES, binary(PADDING_4096, b"x" * 8)


def unsealed():
    """Cases whose checksums are as the edit leaves them."""
    yield "the first copy is missing", MAGIC, binary(0, bytes(COPY), FIRST)
    yield "the second copy is missing", MAGIC, binary(0, bytes(COPY), SECOND)
    yield "the checksums are SHA-512", "its checksum is not SHA-256", together(
        binary(ALGORITHM, b"sha512".ljust(32, b"\0")), lambda head: head.seal("sha512")
    )
    yield "the first copy has a wrong checksum", PASSES, binary(CHECKSUM, b"\x5a" * 32, FIRST)
    yield "the second copy has a wrong checksum", PASSES, binary(CHECKSUM, b"\x5a" * 32, SECOND)
    yield "both copies have a wrong checksum", PASSES, binary(CHECKSUM, b"\x5a" * 32)
    yield "the checksums have something behind their end", PASSES, binary(CHECKSUM + 32, b"x")
    yield "a bit of the keyslot is another", PASSES, lambda head: head.write(40 * KIB, bytes([head.data[40 * KIB] ^ 1]))
    yield "the keyslot's area is wiped", PASSES, lambda head: head.write(2 * COPY, bytes(4 * KIB))


def foreign():
    """Cases that do not bear the volume's UUID where it is looked for: a name, what is found, and the edit."""
    other = f"a LUKS2 header with UUID {OTHER_UUID}"
    yield "both copies have another UUID", other, together(binary(UUID_AT, OTHER_UUID.encode()), Head.seal)
    yield "the first copy has another UUID", other, together(binary(UUID_AT, OTHER_UUID.encode(), FIRST), Head.seal)
    capitals = UUID.upper()
    yield "the UUID is in capitals", f"UUID {capitals}", together(binary(UUID_AT, capitals.encode()), Head.seal)
    yield "both copies are of LUKS1", "a LUKS1 header", together(binary(VERSION, number(1, 2)), Head.seal)
    yield "both copies are missing", "bytes that are no LUKS header", binary(0, bytes(COPY))
    yield "the copies lie in each other's place", "bytes that are no LUKS header", exchange
