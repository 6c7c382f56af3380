"""What a person may write: configuration files and command lines."""


def configuration():
    documented = """\
listen:                       # one or both
  unix:
    path: /run/coffer/keyservice.sock
    allowedUids: [0]
  tls:
    address: 0.0.0.0:7443
    certificate: tls.crt
    privateKey: tls.key
    clientAuthority: ca.crt
providers:
  main:
    type: cluster-key
    file: cluster-key.json
  lab:
    type: local
    keyFile: local.key
    salt: some text
    insecureLocalKey: true
defaultProvider: main
clusterId: 6f9c9f0e-5a5c-4f0e-9f44-0c7d3f5b7a11
store:
  type: filesystem
  path: /var/lib/coffer/records
auditLog: /var/log/coffer/audit.log
"""
    local = "providers: {lab: {type: local, keyFile: k, insecureLocalKey: true}}\n"
    cluster = "providers: {main: {type: cluster-key, file: cluster-key.json}}\n"
    identity = "clusterId: 6f9c9f0e-5a5c-4f0e-9f44-0c7d3f5b7a11\n"
    bomb = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join(['*' + before] * 8)}]\n" for before, name in zip("abcdefgh", "bcdefghi")
    )
    return {
        "good-documented.yaml": documented,
        "good-cluster.yaml": cluster,
        "good-json.yaml": '{"providers": {"main": {"type": "cluster-key", "file": "k\\u0041\\"\\\\.json"}}}',
        "good-local.yaml": local + identity,
        "good-six.yaml": cluster
        + "listen: {tls: {address: '[fe80::1%3]:7443', certificate: a, privateKey: b, clientAuthority: c}}\n",
        "good-nothing.yaml": cluster + "listen:\nstore: null\nauditLog: ~\n",
        "any-anchors.yaml": "providers:\n  a: &k {type: local, keyFile: k, insecureLocalKey: true}\n"
        "  b: {<<: *k, salt: s}\ndefaultProvider: b\n" + identity,
        "good-blocks.yaml": "providers:\n  'm n':\n    type: cluster-key\n    file: >-\n      a\n      b\n",
        "bad-empty.yaml": "",
        "bad-list.yaml": "[1]",
        "bad-text.yaml": "providers",
        "bad-open.yaml": "a: [",
        "bad-tab.yaml": "providers:\n\tmain: x\n",
        "bad-no-text.yaml": b"providers: \xff\n",
        "bad-none.yaml": "providers: {}\n",
        "bad-provider-empty.yaml": "providers:\n  a:\n",
        "bad-missing.yaml": "store: {type: filesystem, path: r}\n",
        "bad-no-id.yaml": local,
        "bad-two-clusters.yaml": "providers: {a: {type: cluster-key, file: f}, b: {type: cluster-key, file: g}}\n"
        "defaultProvider: a\n",
        "bad-insecure.yaml": "providers: {lab: {type: local, keyFile: k}}\n" + identity,
        "bad-default.yaml": cluster + "defaultProvider: mian\n",
        "bad-no-default.yaml": documented.replace("defaultProvider: main\n", ""),
        "bad-type.yaml": "providers: {lab: {type: locl}}\n" + identity,
        "bad-key.yaml": cluster + "lissten: {}\n",
        "bad-store.yaml": cluster + "store: {type: s3, path: 7}\n",
        "bad-uids.yaml": cluster + "listen: {unix: {path: /k, allowedUids: [-1, 4294967296]}}\n",
        "bad-address.yaml": documented.replace("0.0.0.0:7443", "localhost"),
        "bad-id.yaml": local + "clusterId: x\n",
        "bad-twice.yaml": cluster + cluster,
        "any-documents.yaml": cluster + "---\n" + cluster,
        "bad-bomb.yaml": bomb,
        "bad-loop.yaml": "a: &a [*a]\n",
        "bad-deep.yaml": "[" * 300,
        "bad-keys.yaml": "? [a]\n: b\n1: c\n",
        "any-numbers.yaml": cluster + "auditLog: 1e999\ndefaultProvider: .nan\n",
    }


def arguments():
    def line(words, environment=""):
        return "\n".join(words.split()) + "\n\n" + "\n".join(environment.split())

    dev = "dev --state-dir /var/lib/coffer"
    node = "node --listen unix:///run/csi.sock --key-service"
    return {
        "good-dev": line(dev, "HOME PATH COFFER_STATE_DIR"),
        "good-dev-full": line(f"--log-level=trace {dev} --listen unix:///s --node-id n1 --config c --log-format json"),
        "good-node": line(f"{node} unix:///run/k.sock --provision-local --pool-dir p"),
        "good-node-tls": line(f"{node} https://k:7443 --tls-certificate a --tls-private-key b --tls-authority c"),
        "good-keyservice": line("keyservice --config f", "COFFER_PORT COFFER_KEYSERVICE_PORT_7443_TCP_ADDR"),
        "good-keys": line("keys init --state-dir d"),
        "good-volumes": line("volumes list --json --state-dir d"),
        "good-records": line("records show --state-dir d vol-1"),
        "good-not-text": b"keys\ninit\n--state-dir\n\xff\xfe/\n",
        "good-help": line("dev --help"),
        "good-version": line("--version"),
        "bad-nothing": "",
        "bad-verb": line("devv"),
        "bad-no-flag": line("dev"),
        "bad-unknown-flag": line(f"{dev} --state-dirr x"),
        "bad-twice": line(f"{dev} --state-dir y"),
        "bad-relative-socket": line(f"{dev} --listen unix://s"),
        "bad-tcp": line(f"{dev} --listen tcp://x"),
        "bad-variable": line(dev, "COFFER_STATE_DIRR"),
        "bad-level": line(f"--log-level loud {dev}"),
        "bad-not-text": b"\xff\n",
        "bad-word-not-text": b"keyservice\n--config\nf\n--\xff\n",
        "bad-empty-value": "dev\n--state-dir=\n",
        "bad-both": line("devv --listen x", "COFFER_X COFFER_Y"),
    }
