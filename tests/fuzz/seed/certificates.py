"""Certificates, encoded by hand (ITU-T X.690). Nobody signed them, which is not what their reader looks at."""


def der(tag, *parts):
    content = b"".join(parts)
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    counted = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(counted)]) + counted + content


def certificate():
    oid = {
        "ecdsa-with-SHA256": bytes.fromhex("06082a8648ce3d040302"),
        "ecPublicKey": bytes.fromhex("06072a8648ce3d0201"),
        "prime256v1": bytes.fromhex("06082a8648ce3d030107"),
        "subjectAltName": bytes.fromhex("0603551d11"),
    }

    def of(*names, extensions=None):
        algorithm = der(0x30, oid["ecdsa-with-SHA256"])
        validity = der(0x30, der(0x17, b"260101000000Z"), der(0x17, b"360101000000Z"))
        key = der(0x30, der(0x30, oid["ecPublicKey"], oid["prime256v1"]), der(0x03, b"\0\x04" + bytes(64)))
        san = der(0x30, oid["subjectAltName"], der(0x04, der(0x30, *(der(tag, name) for tag, name in names))))
        more = der(0xA3, der(0x30, san)) if extensions is None else extensions
        version, nobody = der(0xA0, der(0x02, b"\x02")), der(0x30)
        body = der(0x30, version, der(0x02, b"\x01"), algorithm, nobody, validity, nobody, key, more)
        return der(0x30, body, algorithm, der(0x03, b"\0" + der(0x30, der(0x02, b"\x01"), der(0x02, b"\x01"))))

    uri, dns, address = 0x86, 0x82, 0x87
    own = of((uri, b"coffer://node/n1"))
    return {
        "good-node": own,
        "good-controller": of((dns, b"c.example"), (uri, b"coffer://controller/c1")),
        "good-long": of((uri, b"coffer://node/" + b"n" * 300)),
        "good-slash": of((address, b"\x7f\0\0\1"), (uri, b"coffer://node//")),
        "bad-empty": b"",
        "bad-two": of((uri, b"coffer://node/n1"), (uri, b"coffer://node/n2")),
        "bad-no-name": of((uri, b"coffer://node/")),
        "bad-other": of((uri, b"spiffe://cluster/node/n1")),
        "bad-host-alone": of((dns, b"coffer://node/n1")),
        "bad-no-extension": of(extensions=b""),
        "bad-not-ascii": of((uri, b"coffer://node/\xff")),
        "bad-torn": own[:-20],
        "bad-length": b"\x30\x84\xff\xff\xff\xff" + own,
        "bad-deep": b"\x30\x80" * 100,
    }
