#!/usr/bin/env python3
"""Makes the seeds of the corpora again, the same bytes each time.

`good-...` is accepted, `bad-...` is refused, and of `any-...` neither is said. Other files of a corpus (what broke a
reader once, what libFuzzer found) stay as they are. The inputs are described at the targets, in tests/testbed/src/fuzz.
"""

import pathlib
import sys

sys.dont_write_bytecode = True

from seed import certificates, csi, disk, keyservice, people, store  # noqa: E402

CORPUS = pathlib.Path(__file__).resolve().parent / "corpus"


def seeds():
    headers = disk.header()
    return {
        "header": headers,
        "mark": disk.mark(headers["good-json"]),
        "record": store.record(),
        "keyfile": store.keyfile(),
        "configuration": people.configuration(),
        "arguments": people.arguments(),
        "node": csi.node(),
        "controller": csi.controller(),
        "identity": csi.identity(),
        "keyservice": keyservice.keyservice(),
        "reply": keyservice.reply(),
        "certificate": certificates.certificate(),
    }


def main():
    for target, files in seeds().items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            if old.name.startswith(("good-", "bad-", "any-")):
                old.unlink()
        for name, content in files.items():
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


if __name__ == "__main__":
    main()
