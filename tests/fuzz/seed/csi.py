"""What a container orchestrator may send."""

from seed.protobuf import message


def mount(mode=7, **parts):
    return message(f2=message(**parts), f3=message(f1=mode))


BLOCK = message(f1=b"", f3=message(f1=7))
EXT4 = mount(f1="ext4")
SECRET = {"passphrase": "a secret that nobody may see"}


def rpc(which, content=b""):
    return bytes([which]) + content


def node():
    staged, published = "/var/lib/kubelet/plugins/staging/v1", "/var/lib/kubelet/pods/p/volumes/v1/mount"

    def stage(**parts):
        return rpc(0, message(**{"f1": "vol-1", "f3": staged, "f4": EXT4, "f6": {"source": "local"}, **parts}))

    def publish(**parts):
        return rpc(2, message(**{"f1": "vol-1", "f3": staged, "f4": published, "f5": EXT4, **parts}))

    device = {"source": "device", "device": "/dev/disk/by-id//x/"}
    full = mount(f1="xfs", f2=["noatime,nodev", "discard"], f3="2000")
    return {
        "good-stage": stage(),
        "good-stage-block": stage(f4=BLOCK),
        "good-stage-device": stage(f6=device),
        "good-stage-full": stage(f1="\u00fcn\u00efcode/../id", f2={"a": "b"}, f3="/a//b/", f4=full),
        "good-stage-kubernetes": stage(f6={"storage.kubernetes.io/csiProvisionerIdentity": "x"}),
        "good-unstage": rpc(1, message(f1="vol-1", f2=staged)),
        "good-publish": publish(f6=1, f8={"csi.storage.k8s.io/pod.name": "p"}),
        "good-publish-readers": publish(f5=mount(mode=2)),
        "good-unpublish": rpc(3, message(f1="vol-1", f2=published)),
        "good-stats": rpc(4, message(f1="vol-1", f2=published, f3=staged)),
        "good-expand": rpc(5, message(f1="vol-1", f2=published, f3=message(f1=1 << 30, f2=1 << 31), f5=EXT4)),
        "good-expand-at-all": rpc(5, message(f1="vol-1", f2=published)),
        "good-capabilities": rpc(6),
        "good-info": rpc(7, message(f99="an unknown field")),
        "bad-empty": b"",
        "bad-stage-nothing": rpc(0),
        "bad-stage-secret": stage(f5=SECRET),
        "bad-stage-relative": stage(f3="a/b"),
        "bad-stage-root": stage(f3="//"),
        "bad-stage-up": stage(f3="/a/../../etc"),
        "bad-stage-here": stage(f3="/a/./b"),
        "bad-stage-control": stage(f3="/a\nb"),
        "bad-stage-long": stage(f3="/" + "a" * 4095),
        "bad-stage-id": stage(f1="a\0b"),
        "bad-stage-long-id": stage(f1="a" * 513),
        "bad-stage-many-nodes": stage(f4=mount(mode=5, f1="ext4")),
        "bad-stage-mode": stage(f4=mount(mode=-1)),
        "bad-stage-no-mode": stage(f4=message(f2=b"")),
        "bad-stage-no-form": stage(f4=message(f3=message(f1=7))),
        "bad-stage-remount": stage(f4=mount(f1="ext4", f2=["noatime,remount"])),
        "bad-stage-option": stage(f4=mount(f1="ext4", f2=["a\0b"])),
        "bad-stage-file-system": stage(f4=mount(f1="zfs")),
        "bad-stage-group": stage(f4=mount(f3="-1")),
        "bad-stage-context": stage(f6={"sauce": "local"}),
        "bad-stage-both": stage(f6={**device, "source": "local"}),
        "bad-stage-device": stage(f6={"source": "device"}),
        "bad-stage-large-context": stage(f6={"a/b": "x" * 4096}),
        "bad-publish-target": publish(f4=""),
        "bad-stats": rpc(4, message(f1="vol-1", f2="relative")),
        "bad-expand-negative": rpc(5, message(f1="vol-1", f2=published, f3=message(f1=-1))),
        "bad-expand-limit": rpc(5, message(f1="vol-1", f2=published, f3=message(f1=2, f2=1))),
        "bad-torn": stage()[:-3],
        "bad-text": rpc(1, message(f1=b"\xff", f2=staged)),
        "bad-length": rpc(1, b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        "bad-group": rpc(1, b"\x0b" * 120),
    }


def controller():
    def create(**parts):
        size = message(f1=64 << 20)
        return rpc(0, message(**{"f1": "pvc-1", "f2": size, "f3": [EXT4], "f4": {"fsType": "ext4"}, **parts}))

    def of(**parameters):
        return create(f4=parameters)

    everything = {
        "fsType": "ext4",
        "cipher": "aes-xts-plain64",
        "sectorSize": "+0512",
        "discard": "true",
        "mkfsOptions": " -i 8192\t-O ^metadata_csum,64bit ",
        "provider": "main",
        "context": "team=blue,empty=,sum=a=b",
        "encryption": "luks2",
        "integrity": "none",
        "device": "/dev//sdb/",
        "csi.storage.k8s.io/pvc/namespace": "blue",
        "csi.storage.k8s.io/pv/name": "pv-1",
    }
    return {
        "good-create": create(),
        "good-create-everything": create(f4=everything),
        "good-create-block": create(f3=[BLOCK], f4={}),
        "good-create-several": create(f3=[EXT4, mount(mode=2), mount(mode=6)]),
        "good-create-name": create(f1="pvc-\u00e9/../x"),
        "good-create-here": create(f7=message(f1=[message(f1={"coffer.csi/node": "n1"})])),
        "good-delete": rpc(1, message(f1="vol-1")),
        "good-validate": rpc(2, message(f1="vol-1", f2={"source": "local"}, f3=[EXT4, BLOCK])),
        "good-capacity": rpc(3, message(f1=[EXT4], f2={"fsType": "ext4"})),
        "good-expand": rpc(4, message(f1="vol-1", f2=message(f1=1 << 30), f4=EXT4)),
        "good-list": rpc(5, message(f1=10, f2="after:vol-1")),
        "good-capabilities": rpc(6),
        "bad-empty": b"",
        "bad-create-nothing": rpc(0),
        "bad-create-name": create(f1="a" * 129),
        "bad-create-control": create(f1="a\nb"),
        "bad-create-secret": create(f5=SECRET),
        "bad-create-mixed": create(f3=[EXT4, BLOCK], f4={}),
        "bad-create-contradiction": create(f3=[mount(f1="xfs")]),
        "bad-create-block-with-fs": create(f3=[BLOCK]),
        "bad-create-negative": create(f2=message(f1=-(1 << 63))),
        "bad-create-range": create(f2=message(f1=2, f2=1)),
        "bad-unknown": of(sectorsize="512"),
        "bad-none": of(encryption="none"),
        "bad-cipher": of(cipher="cipher_null-ecb"),
        "bad-sector": of(sectorSize="520"),
        "bad-integrity": of(integrity="hmac-sha256"),
        "bad-key-id": of(keyId="k"),
        "bad-mkfs": of(mkfsOptions="-d /etc"),
        "bad-mkfs-value": of(mkfsOptions="-L /dev/sda"),
        "bad-context": of(context="a=1,a=2"),
        "bad-no-context": of(context=""),
        "bad-device": of(device="../sdb"),
        "bad-large": of(context="a=" + "x" * 4096),
        "bad-delete-secret": rpc(1, message(f1="vol-1", f2=SECRET)),
        "bad-validate-mode": rpc(2, message(f1="vol-1", f3=[mount(mode=3)])),
        "bad-expand": rpc(4, message(f1="", f2=message(f1=1))),
        "bad-torn": create()[:-1],
        "bad-map": rpc(0, message(f1="x", f4=[b"\x0a\x80"])),
    }


def identity():
    return {
        "good-info": rpc(0),
        "good-capabilities": rpc(1),
        "good-probe": rpc(2),
        "good-unknown-fields": rpc(2, message(f1="x", f2=-1, f536870911=b"y")),
        "bad-empty": b"",
        "bad-field": rpc(0, b"\x07"),
        "bad-torn": rpc(1, b"\x0a"),
    }
