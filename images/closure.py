#!/usr/bin/env python3
"""Copies programs out of a root file system, with the libraries that they load and nothing else.

    closure.py ROOT OUT PROGRAM...

A program is a name, looked for where programs are, or an absolute path. The root's own dynamic linker says which libraries
it takes, so nothing is guessed. On standard output: every file that was copied, by its path in the root.
"""

import os
import shutil
import subprocess
import sys

FOLDERS = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
# Loaded while it runs, by threads that end.
ALSO = ["libgcc_s.so.1"]


def main():
    root, out, programs = sys.argv[1], sys.argv[2], sys.argv[3:]
    root = root.rstrip("/")
    kept = set()

    def keep(path):
        """Copies a file; of a link, and of folders that are links, those as well."""
        if path in kept or path == "/":
            return
        kept.add(path)
        parent = os.path.dirname(path)
        if os.path.islink(root + parent):
            keep(parent)
            resolved = os.path.normpath(os.path.join(os.path.dirname(parent), os.readlink(root + parent)))
            keep(os.path.join(resolved, os.path.basename(path)))
            return
        os.makedirs(out + parent, exist_ok=True)
        if os.path.islink(root + path):
            target = os.readlink(root + path)
            if not os.path.lexists(out + path):
                os.symlink(target, out + path)
            path = os.path.normpath(os.path.join(parent, target))
            if os.path.isdir(root + path):
                os.makedirs(out + path, exist_ok=True)
            else:
                keep(path)
        else:
            shutil.copy2(root + path, out + path)

    for name in programs:
        path = name if name.startswith("/") else found(root, name)
        keep(path)
        for library in libraries(root, path):
            keep(library)
    folder = next((os.path.dirname(path) for path in sorted(kept) if path.endswith("/libc.so.6")), None)
    for name in ALSO if folder else []:
        for where in (folder, "/usr" + folder):
            if os.path.exists(os.path.join(root + where, name)):
                keep(os.path.join(where, name))
                break
    for path in sorted(kept):
        if not os.path.isdir(root + path):
            print(path)


def found(root, name):
    for folder in FOLDERS:
        if os.path.lexists(f"{root}{folder}/{name}"):
            return f"{folder}/{name}"
    raise SystemExit(f"there is no {name} in {root or '/'}")


def libraries(root, path):
    """What the dynamic linker loads for a program; its own path is among it."""
    linker = interpreter(root + path)
    if linker is None:
        return []
    command = [linker, "--list", path]
    if root:
        command = ["chroot", root] + command
        if os.geteuid() != 0:
            command = ["unshare", "--map-root-user"] + command
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode != 0 or "not found" in listed.stdout:
        raise SystemExit(f"{path} does not find its libraries in {root or '/'}: {listed.stdout}{listed.stderr}")
    words = [line.split("=>")[-1].split() for line in listed.stdout.splitlines()]
    return [linker] + [words[0] for words in words if words and words[0].startswith("/")]


def interpreter(path):
    """The dynamic linker that a program names (ELF: PT_INTERP); none where it is static."""
    with open(path, "rb") as file:
        head = file.read(64)
        if head[:5] != b"\x7fELF\x02":
            return None
        number = lambda data, start, size: int.from_bytes(data[start : start + size], "little")
        start, size, count = number(head, 32, 8), number(head, 54, 2), number(head, 56, 2)
        for index in range(count):
            file.seek(start + index * size)
            header = file.read(size)
            if number(header, 0, 4) == 3:
                file.seek(number(header, 8, 8))
                return file.read(number(header, 32, 8)).rstrip(b"\0").decode()
    return None


if __name__ == "__main__":
    main()
