"""What a store and a key file may hold."""

import base64
import json

from seed import VECTORS


def record():
    kinds = ("derived", "wrapped", "role", "destroyed")
    golden = {kind: (VECTORS / "records" / f"golden-{kind}.json").read_text() for kind in kinds}

    def changed(change, name="derived"):
        tree = json.loads(golden[name])
        change(tree)
        return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"

    def with_(**more):
        return changed(lambda tree: tree.update(more))

    def parameters(**more):
        return changed(lambda tree: tree["parameters"].update(more))

    def role(**more):
        return changed(lambda tree: tree["key"]["role"].update(more), "role")

    prepared = {"state": "prepared", "formatAttempt": 0, "headerMac": None}
    constellation = {"type": "derived", "mechanism": "constellation-v1", "clusterKeyVersion": 0, "salt": ""}
    derived = golden["derived"]
    return {
        **{f"good-{name}.json": text for name, text in golden.items()},
        "good-prepared.json": with_(**prepared),
        "good-block.json": parameters(content={"type": "block"}),
        "good-xfs.json": parameters(content={"type": "filesystem", "fsType": "xfs"}, sectorSize=512, discard="true"),
        "good-mkfs-options.json": parameters(mkfsOptions=["-i", "8192", "-O", "^metadata_csum"]),
        "good-constellation.json": with_(key=constellation),
        "good-names.json": with_(name="pvc-\u00fc/../\u0001\"\\", tenant="blue", node=None, lineage="snap-1"),
        "good-context.json": with_(context={"a": "", "team": "blue"}),
        "good-year.json": with_(createdAt="-009999-01-02T01:59:59Z"),
        "bad-empty": "",
        "bad-torn.json": derived[: len(derived) // 2],
        "bad-compact.json": json.dumps(json.loads(derived)) + "\n",
        "bad-no-line-break.json": derived.rstrip("\n"),
        "bad-line-breaks.json": derived.replace("\n", "\r\n"),
        "bad-mark-of-order.json": "\ufeff" + derived,
        "bad-and-more.json": derived + "{}\n",
        "bad-order.json": changed(lambda tree: tree.update(formatVersion=tree.pop("formatVersion"))),
        "bad-unknown-field.json": with_(more=1),
        "bad-twice.json": derived.replace('"generation": 1,', '"generation": 1,\n  "generation": 2,'),
        "bad-version.json": with_(formatVersion=2),
        "bad-ready-without-tag.json": with_(headerMac=None),
        "bad-short-tag.json": with_(headerMac="AAAA"),
        "bad-prepared-with-tag.json": with_(state="prepared"),
        "bad-destroyed-with-key.json": with_(state="destroyed"),
        "bad-ready-without-key.json": with_(key=None),
        "bad-volume-id.json": with_(volumeId=""),
        "bad-long-volume-id.json": with_(volumeId="a" * 513),
        "bad-generation.json": with_(generation=4294967296),
        "bad-uuid-case.json": derived.replace("d8546181", "D8546181"),
        "bad-base64.json": with_(mac="!"),
        "bad-sector-size.json": parameters(sectorSize=520),
        "bad-mkfs-options.json": parameters(mkfsOptions=["-d", "/etc"]),
        "bad-no-mkfs-options.json": parameters(mkfsOptions=[]),
        "bad-time.json": with_(createdAt="2026-11-21T12:57:36+01:00"),
        "bad-role.json": role(more=1),
        "bad-role-id.json": role(externalId=None),
        "bad-no-role.json": changed(lambda tree: tree["key"].update(role=None), "wrapped"),
        "bad-deep.json": "[" * 200,
    }


def keyfile():
    cluster = (VECTORS / "cluster-key.json").read_text()
    tree = json.loads(cluster)
    key = base64.b64encode(bytes(range(32))).decode()
    one = tree["versions"][0]
    short = base64.b64encode(bytes(31)).decode()

    def with_(**more):
        return json.dumps({**tree, **more})

    return {
        "good-cluster.json": cluster,
        "good-two-versions.json": with_(versions=[one, {**one, "version": 4294967295}]),
        "good-local": key,
        "good-local-spaced": f"\n {key}\r\n",
        "bad-empty": "",
        "bad-torn.json": cluster[:150],
        "bad-version.json": with_(formatVersion=2),
        "bad-current.json": with_(current=2),
        "bad-twice.json": with_(versions=[one, one]),
        "bad-none.json": with_(versions=[]),
        "bad-short.json": with_(versions=[{**one, "key": short}]),
        "bad-salt.json": with_(versions=[{**one, "salt": ""}]),
        "bad-unknown.json": with_(versions=[{**one, "note": key}]),
        "bad-escaped.json": cluster.replace("AAEC", "\\u0041AEC"),
        "bad-key-as-version.json": with_(current=key),
        "bad-cluster-id.json": with_(clusterId=key),
        "bad-local-short": short,
        "bad-local-two": f"{key}\n{key}",
        "bad-local-text": "not base64, and not to be shown either",
        "bad-local-no-text": b"\xff\xfe" + key.encode(),
    }
