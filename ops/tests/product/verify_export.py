"""Verifies a folder of `botledger audit export`, a consistency proof and tlog-proofs with nothing but
Python: written from RFC 6962, RFC 8032 and the C2SP texts, not from this program.

    verify_export.py FOLDER [PROOF.tlog-proof ...]
"""
import base64, hashlib, json, pathlib, sys

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
ORDER = 2**252 + 27742317777372353535851937790883648493

def sha256(data):
    return hashlib.sha256(data).digest()

def recover(data):
    number = int.from_bytes(data, "little")
    sign, y = number >> 255, number & (2**255 - 1)
    xx = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(xx, (P + 3) // 8, P)
    if (x * x - xx) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if y >= P or (x * x - xx) % P:
        raise ValueError("no point")
    return (P - x if x & 1 != sign else x), y

def add(one, other):
    (a, b), (c, d) = one, other
    k = D * a * b * c * d
    return (a * d + b * c) * pow(1 + k, -1, P) % P, (b * d + a * c) * pow(1 - k, -1, P) % P

def times(scalar, point):
    total = (0, 1)
    while scalar:
        if scalar & 1:
            total = add(total, point)
        point, scalar = add(point, point), scalar >> 1
    return total

BASE = recover((4 * pow(5, -1, P) % P).to_bytes(32, "little"))

def ed25519(key, message, signature):
    r, s = signature[:32], int.from_bytes(signature[32:], "little")
    challenge = int.from_bytes(hashlib.sha512(r + key + message).digest(), "little")
    return s < ORDER and times(s, BASE) == add(recover(r), times(challenge % ORDER, recover(key)))

def checkpoint(note, vkey):
    name, key_id, key = vkey.strip().split("+", 2)
    key = base64.b64decode(key, validate=True)
    assert key[0] == 1 and sha256(name.encode() + b"\n" + key)[:4].hex() == key_id, "the key is damaged"
    text, _, signatures = note.rpartition("\n\n")
    lines = [line.split(" ") for line in signatures.splitlines()]
    blobs = [base64.b64decode(blob, validate=True) for dash, who, blob in lines if dash == "—" and who == name]
    assert any(blob[:4].hex() == key_id and ed25519(key[1:], (text + "\n").encode(), blob[4:]) for blob in blobs), \
        "not signed by the key"
    origin, size, root = text.split("\n")
    assert origin == name, "of another log"
    return int(size), base64.b64decode(root, validate=True)

def node(left, right):
    return sha256(b"\x01" + left + right)

def head(hashes):
    if len(hashes) < 2:
        return hashes[0] if hashes else sha256(b"")
    split = 1 << (len(hashes) - 1).bit_length() - 1
    return node(head(hashes[:split]), head(hashes[split:]))

def leaf_hash(event):
    leaf = b"\x01" + b"".join(event[name].to_bytes(8, "big") for name in ("position", "recorded_at_micros", "sequence"))
    for name in ("aggregate_type", "aggregate_id", "event_type", "event_version", "payload", "metadata"):
        part = event[name].encode()
        leaf += len(part).to_bytes(4, "big") + part
    return sha256(b"\x00" + leaf)

def included(leaf, index, size, path, root):
    def climb(low, high, path):
        if high - low == 1:
            assert not path, "the proof is too long"
            return leaf
        assert path, "the proof is too short"
        middle = low + (1 << (high - low - 1).bit_length() - 1)
        if index < middle:
            return node(climb(low, middle, path[:-1]), path[-1])
        return node(path[-1], climb(middle, high, path[:-1]))
    return 0 <= index < size and climb(0, size, path) == root

def main(folder, *proofs):
    folder = pathlib.Path(folder)
    vkey = (folder / "key").read_text()
    size, root = checkpoint((folder / "checkpoint").read_text(), vkey)
    events = [json.loads(line) for line in (folder / "leaves.ndjson").open()]
    assert [event["position"] for event in events] == list(range(1, size + 1)), "positions are not dense"
    leaves = [leaf_hash(event) for event in events]
    assert head(leaves) == root, "the leaves do not give the signed root"
    for proof in proofs:
        top, _, note = pathlib.Path(proof).read_text().partition("\n\n")
        header, index, *path = top.split("\n")
        assert header == "c2sp.org/tlog-proof@v1" and index.startswith("index "), "no tlog-proof"
        index = int(index[6:])
        path = [base64.b64decode(line, validate=True) for line in path]
        assert included(leaves[index], index, *[checkpoint(note, vkey)[0], path, checkpoint(note, vkey)[1]]), \
            "the proof does not hold"
    print(f"{size} events verified")

if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (AssertionError, ValueError) as error:
        sys.exit(f"NOT verified: {error}")
