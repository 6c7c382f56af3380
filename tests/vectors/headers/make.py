#!/usr/bin/env python3
"""Makes the tamper corpus: one LUKS2 header as Coffer makes it, and what somebody could make of it (cases.py).

    make.py          makes cases.json again from base.bin; the same bytes each time
    make.py --base   makes a new base.bin and base.json first (cryptsetup; new salts and a new LUKS volume key)
    make.py --ask    tells what cryptsetup itself says of each case: whether the DEK of base.json opens it
"""

import json
import pathlib
import subprocess
import sys
import tempfile

# A run leaves nothing but what it makes.
sys.dont_write_bytecode = True

import cases
from cases import COPY, DATA, DEK, HEADER, KEPT, KEYSLOTS, KIB, OURS, SECTOR, UUID, Head, compact

HERE = pathlib.Path(__file__).resolve().parent


def writes(base, head):
    """What is to be written over the base, in few pieces."""
    assert len(base) == len(head)
    changed = [at for at in range(len(base)) if base[at] != head[at]]
    assert changed, "the edit changes nothing"
    pieces = []
    for at in changed:
        if pieces and at - pieces[-1][1] < 8:
            pieces[-1][1] = at + 1
        else:
            pieces.append([at, at + 1])
    made = []
    for start, end in pieces:
        piece = bytes(head[start:end])
        # A long row of one byte is written as that.
        rest = piece.lstrip(piece[:1])
        row = len(piece) - len(rest)
        if row >= 32:
            made.append({"offset": start, "hex": piece[:1].hex(), "times": row})
            start, piece = start + row, rest
        if piece:
            made.append({"offset": start, "hex": piece.hex()})
    return made


def make_cases():
    base = (HERE / "base.bin").read_bytes()
    assert len(base) == KEPT
    text_of_base = Head(base).text(0)
    assert compact(json.loads(text_of_base)) == text_of_base, "cryptsetup writes its JSON in another form"
    made = []

    def add(name, told, *edits):
        head = Head(base)
        for edit in edits:
            edit(head)
        made.append({"name": name, **told, "writes": writes(base, head.data)})

    for name, finding, edit in cases.metadata():
        add(name, {"finding": finding}, edit, Head.seal)
    for name, finding, edit in cases.unsealed():
        add(name, {"finding": finding}, edit)
    for name, found, edit in cases.foreign():
        add(name, {"foreign": found}, edit)
    names = [case["name"] for case in made]
    assert len(set(names)) == len(names), "a name is there twice"
    lines = [json.dumps(case, ensure_ascii=False) for case in made]
    (HERE / "cases.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
    return made


def cryptsetup(*words):
    words = ["cryptsetup", *map(str, words), "--key-file", "-", "--keyfile-size", "32"]
    return subprocess.run(words, input=DEK, capture_output=True, timeout=10)


def opens(folder, head):
    """What cryptsetup says of a header and the DEK: its status, and its words."""
    path = folder / "header"
    path.write_bytes(bytes(head).ljust(HEADER, b"\0"))
    data = folder / "data"
    with data.open("wb") as file:
        file.truncate(33 * DATA)
    try:
        done = cryptsetup("open", "--test-passphrase", "--type", "luks2", "--header", path, data)
    except subprocess.TimeoutExpired:
        return None, "it does not end"
    return done.returncode, " ".join(done.stderr.decode(errors="replace").split())


def make_base(folder):
    """As src/node/luks.rs has a header made."""
    header, data = folder / "header", folder / "data"
    for path, length in ((header, DATA), (data, 33 * DATA)):
        with path.open("wb") as file:
            file.truncate(length)
    words = ["luksFormat", "--batch-mode", "--type", "luks2", "--hash", "sha256", "--uuid", UUID, "--cipher", OURS]
    words += ["--sector-size", SECTOR, "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", 1000]
    words += ["--luks2-metadata-size", f"{COPY // KIB}k", "--luks2-keyslots-size", f"{KEYSLOTS // KIB}k"]
    words += ["--offset", DATA // 512, "--key-size", 512, "--header", header, data]
    done = cryptsetup(*words)
    if done.returncode != 0:
        sys.exit(f"cryptsetup luksFormat: {done.stderr.decode()}")
    head = header.read_bytes()[:KEPT]
    status, told = opens(folder, head)
    if status != 0:
        sys.exit(f"the new header does not open: {told}")
    (HERE / "base.bin").write_bytes(head)
    version = subprocess.run(["cryptsetup", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    about = {"luksUuid": UUID, "dek": DEK.hex(), "sectorSize": SECTOR, "headerBytes": HEADER, "cryptsetup": version}
    (HERE / "base.json").write_text(json.dumps(about, indent=2) + "\n")


def ask(folder, made):
    base = (HERE / "base.bin").read_bytes()
    for case in made:
        head = Head(base)
        for one in case["writes"]:
            head.write(one["offset"], bytes.fromhex(one["hex"]) * one.get("times", 1))
        status, told = opens(folder, head.data)
        listed = case.get("finding") or case.get("foreign") or "PASSES"
        print(f"{'opens' if status == 0 else status}\t{case['name']}\t{listed}\t{told}")


def main():
    words = sys.argv[1:]
    if set(words) - {"--base", "--ask"}:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if "--base" in words:
            make_base(folder)
        made = make_cases()
        if "--ask" in words:
            ask(folder, made)


if __name__ == "__main__":
    main()
