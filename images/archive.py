#!/usr/bin/env python3
"""Writes a container image as one file, without a daemon and without a registry: an OCI image layout (image-spec v1.1,
image-layout.md) that has docker's manifest.json beside it, so that ctr, podman, skopeo and docker all import it.

    archive.py OUT NAME:TAG --epoch SECONDS --entrypoint PATH [--user UID:GID] [--label KEY=VALUE]... LAYER_FOLDER...

Each folder becomes a layer, the first the lowest. The same folders give the same bytes: names are in order, everything is
root's, every time is the epoch's, and no file sets a user id.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import stat
import tarfile
import time

MACHINES = {62: "amd64", 183: "arm64"}  # e_machine of ELF


def main():
    words = argparse.ArgumentParser()
    words.add_argument("out")
    words.add_argument("name")
    words.add_argument("layers", nargs="+")
    words.add_argument("--epoch", type=int, required=True)
    words.add_argument("--entrypoint", required=True)
    words.add_argument("--user", default="")
    words.add_argument("--label", action="append", default=[])
    args = words.parse_intermixed_args()

    blobs = {}

    def keep(data, kind):
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(args.epoch))
    layers, diff_ids, history = [], [], []
    for folder in args.layers:
        plain = layer(folder, args.epoch)
        diff_ids.append("sha256:" + hashlib.sha256(plain).hexdigest())
        layers.append(keep(gzip.compress(plain, 6, mtime=0), "layer.v1.tar+gzip"))
        history.append({"created": created, "created_by": "images/build"})
    labels = dict(label.split("=", 1) for label in args.label)
    config = {
        "created": created,
        "architecture": architecture(args.layers, args.entrypoint),
        "os": "linux",
        "config": {
            "User": args.user,
            "Entrypoint": [args.entrypoint],
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "WorkingDir": "/",
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": history,
    }
    config = keep(text(config), "config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config}
    manifest = keep(text(manifest | {"layers": layers, "annotations": labels}), "manifest.v1+json")
    tag = args.name.rsplit(":", 1)[1]
    manifest["annotations"] = {"io.containerd.image.name": args.name, "org.opencontainers.image.ref.name": tag}
    path = lambda blob: "blobs/sha256/" + blob["digest"].split(":")[1]
    blobs["oci-layout"] = text({"imageLayoutVersion": "1.0.0"})
    blobs["index.json"] = text({"schemaVersion": 2, "manifests": [manifest]})
    docker = {"Config": path(config), "RepoTags": [args.name], "Layers": [path(layer) for layer in layers]}
    blobs["manifest.json"] = text([docker])
    with open(args.out + ".part", "wb") as out, tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        # Whoever reads it as a stream learns first what it is.
        for name in sorted(blobs, key=lambda name: (name.startswith("blobs/"), name != "oci-layout", name)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(blobs[name]), 0o644, args.epoch
            tar.addfile(entry, io.BytesIO(blobs[name]))
    os.rename(args.out + ".part", args.out)
    print(f"{args.out}: {args.name}, {manifest['digest']}, {os.path.getsize(args.out) / 1e6:.1f} MB")


def layer(folder, epoch):
    """A folder as a tar file."""
    names = []
    for parent, folders, files in os.walk(folder):
        names += [os.path.relpath(os.path.join(parent, name), folder) for name in folders + files]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(names):
            path = os.path.join(folder, name)
            entry = tar.gettarinfo(path, name)
            # The second name of a file is a file of its own, so that the order of names does not matter.
            if entry.islnk():
                entry.type, entry.size, entry.linkname = tarfile.REGTYPE, os.path.getsize(path), ""
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime = epoch
            entry.mode &= ~(stat.S_ISUID | stat.S_ISGID)
            if entry.isreg():
                with open(path, "rb") as file:
                    tar.addfile(entry, file)
            else:
                tar.addfile(entry)
    return out.getvalue()


def architecture(folders, program):
    """What processor a program is for."""
    for folder in reversed(folders):
        path = os.path.join(folder, program.lstrip("/"))
        if os.path.isfile(path):
            with open(path, "rb") as file:
                head = file.read(20)
            machine = int.from_bytes(head[18:20], "little")
            if head[:4] != b"\x7fELF" or machine not in MACHINES:
                raise SystemExit(f"{path} is no program for {' or '.join(MACHINES.values())}")
            return MACHINES[machine]
    raise SystemExit(f"no layer has {program}")


def text(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


if __name__ == "__main__":
    main()
