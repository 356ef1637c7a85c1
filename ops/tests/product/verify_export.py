"""Verifies a folder of `botledger audit export`, that its ledger begins with the one of an earlier
checkpoint, and tlog-proofs, with nothing but Python: written from RFC 6962, RFC 8032 and the C2SP
texts, not from this program.

    verify_export.py FOLDER [--from CHECKPOINT CONSISTENCY] [PROOF.tlog-proof ...]
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

def checkpoint(note, keys):
    """Size and root, when one of the log's keys has signed."""
    text, _, signatures = note.rpartition("\n\n")
    origin, size, root = text.split("\n")
    signed = False
    for line in signatures.splitlines():
        dash, who, blob = line.split(" ")
        blob = base64.b64decode(blob, validate=True)
        assert dash == "—", "no signature line"
        for vkey in keys.split():
            name, key_id, key = vkey.split("+", 2)
            key = base64.b64decode(key, validate=True)
            assert key[0] == 1 and sha256(name.encode() + b"\n" + key)[:4].hex() == key_id, "a key is damaged"
            assert origin == name, "of another log"
            if who == name and blob[:4].hex() == key_id:
                assert ed25519(key[1:], (text + "\n").encode(), blob[4:]), "the signature is wrong"
                signed = True
    assert signed, "not signed by the log"
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

def consistent(old, new, path, old_root, new_root):
    """RFC 6962 section 2.1.2: both roots come out of the same hashes."""
    path = list(path)

    def climb(old, low, high, whole):
        # The root of the first `old` leaves of this subtree, and the root of all of it.
        if old == high - low:
            root = old_root if whole else path.pop(0)
            return root, root
        split = 1 << (high - low - 1).bit_length() - 1
        if old <= split:
            before, left = climb(old, low, low + split, whole)
            return before, node(left, path.pop(0))
        before, right = climb(old - split, low + split, high, False)
        left = path.pop(0)
        return node(left, before), node(left, right)

    assert 0 < old <= new, "no such sizes"
    before, after = climb(old, 0, new, True)
    return not path and before == old_root and after == new_root

def main(folder, *arguments):
    folder = pathlib.Path(folder)
    keys = (folder / "key").read_text()
    size, root = checkpoint((folder / "checkpoint").read_text(), keys)
    events = [json.loads(line) for line in (folder / "leaves.ndjson").open()]
    assert [event["position"] for event in events] == list(range(1, size + 1)), "positions are not dense"
    leaves = [leaf_hash(event) for event in events]
    assert head(leaves) == root, "the leaves do not give the signed root"
    if arguments[:1] == ("--from",):
        _, earlier, body, *arguments = arguments
        old, old_root = checkpoint(pathlib.Path(earlier).read_text(), keys)
        top, _, note = pathlib.Path(body).read_text().partition("\n\n")
        first, *path = top.split("\n")
        assert first == f"old {old}", "the proof starts at another head"
        path = [base64.b64decode(line, validate=True) for line in path]
        new, new_root = checkpoint(note, keys)
        assert consistent(old, new, path, old_root, new_root), "the ledger does not begin with the earlier one"
    for proof in arguments:
        top, _, note = pathlib.Path(proof).read_text().partition("\n\n")
        header, index, *path = top.split("\n")
        assert header == "c2sp.org/tlog-proof@v1" and index.startswith("index "), "no tlog-proof"
        index = int(index[6:])
        path = [base64.b64decode(line, validate=True) for line in path]
        assert included(leaves[index], index, *[checkpoint(note, keys)[0], path, checkpoint(note, keys)[1]]), \
            "the proof does not hold"
    print(f"{size} events verified")

if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (AssertionError, ValueError, IndexError) as error:
        sys.exit(f"NOT verified: {error}")
