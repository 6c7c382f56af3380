#!/usr/bin/env python3
"""Writes what an image is made of, as CycloneDX 1.6 in JSON.

    sbom.py OUT --name NAME --version VERSION --epoch SECONDS [--features LIST] [--packages FILE]

Crates are those that cargo says are linked into Coffer with these features (`cargo tree`, without building anything); what
they are licensed under, and their checksums, are in cargo's metadata and Cargo.lock. Debian's packages come from a file, in
the form of dpkg's control files.
"""

import argparse
import json
import re
import subprocess
import time
import uuid


def main():
    words = argparse.ArgumentParser()
    words.add_argument("out")
    words.add_argument("--name", required=True)
    words.add_argument("--version", required=True)
    words.add_argument("--epoch", type=int, required=True)
    words.add_argument("--features", required=True)
    words.add_argument("--packages")
    args = words.parse_args()

    components = crates(args.features) + (packages(args.packages) if args.packages else [])
    components.sort(key=lambda component: component["bom-ref"])
    root = {
        "type": "container",
        "bom-ref": args.name,
        "name": args.name,
        "version": args.version,
        "licenses": [{"expression": "Apache-2.0"}],
    }
    content = json.dumps([root, components], sort_keys=True)
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        # The same content has the same number.
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(args.epoch)),
            "component": root,
        },
        "components": components,
        "dependencies": [{"ref": args.name, "dependsOn": [component["bom-ref"] for component in components]}],
    }
    with open(args.out, "w") as file:
        json.dump(document, file, indent=1, sort_keys=True)
        file.write("\n")
    kinds = ["pkg:cargo", "pkg:deb"]
    count = {kind: sum(component["bom-ref"].startswith(kind) for component in components) for kind in kinds}
    print(f"{args.out}: {count['pkg:cargo']} crates, {count['pkg:deb']} packages")


def crates(features):
    tree = ["tree", "--locked", "--package", "coffer", "--edges", "normal", "--no-default-features", "--features", features]
    linked = set(cargo(tree + ["--prefix", "none", "--format", "{p}"]).split("\n"))
    linked = {tuple(line.split()[:2]) for line in linked if line}
    with open("Cargo.lock") as file:
        lock = re.findall(r'name = "(.*)"\nversion = "(.*)"\n(?:source = .*\nchecksum = "(.*)"\n)?', file.read())
    checksums = {(name, version): checksum for name, version, checksum in lock}
    found = []
    for package in json.loads(cargo(["metadata", "--locked", "--format-version", "1"]))["packages"]:
        name, version = package["name"], package["version"]
        if (name, f"v{version}") not in linked or name == "coffer":
            continue
        url = f"pkg:cargo/{name}@{version}"
        component = {"type": "library", "bom-ref": url, "purl": url, "name": name, "version": version, "scope": "required"}
        if package["license"]:
            # An older spelling of OR.
            component["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
        if checksums.get((name, version)):
            component["hashes"] = [{"alg": "SHA-256", "content": checksums[name, version]}]
        found.append(component)
    return found


def cargo(words):
    return subprocess.run(["cargo"] + words, check=True, capture_output=True, text=True).stdout


def packages(path):
    with open(path) as file:
        stanzas = [stanza for stanza in file.read().split("\n\n") if stanza.strip()]
    found = []
    for stanza in stanzas:
        field = dict(re.findall(r"^([A-Za-z-]+): (.*)$", stanza, re.M))
        name, version, architecture = field["Package"], field["Version"], field["Architecture"]
        url = f"pkg:deb/debian/{name}@{version.replace('+', '%2B').replace(':', '%3A')}?arch={architecture}"
        found.append({
            "type": "library",
            "bom-ref": url,
            "purl": url,
            "name": name,
            "version": version,
            "supplier": {"name": field.get("Maintainer", "Debian")},
            "scope": "required",
        })
    return found


if __name__ == "__main__":
    main()
