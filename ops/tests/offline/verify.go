// Verifies what `botledger audit` prints with the packages that Go's own checksum database is verified
// with (golang.org/x/mod/sumdb): nothing in here is ours but the reading of files.
//
//	verify KEYS checkpoint NOTE [WITNESSKEY]       prints size and root
//	verify KEYS inclusion  TLOG-PROOF LEAFHASH     LEAFHASH in hex
//	verify KEYS consistency OLDNOTE BODY           BODY as a witness is sent it
//	verify KEYS leaves NOTE LEAVES.ndjson          the export of all leaves
//
// KEYS is a file with the log's public keys, one a line.
package main

import (
	"bufio"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// A witness's key: the packages of 2022 know Ed25519 notes, not yet the time that a cosignature carries.
type witness struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

func (w witness) Name() string    { return w.name }
func (w witness) KeyHash() uint32 { return w.hash }
func (w witness) Verify(text, signature []byte) bool {
	if len(signature) != 8+ed25519.SignatureSize {
		return false
	}
	message := fmt.Sprintf("cosignature/v1\ntime %d\n%s", binary.BigEndian.Uint64(signature), text)
	return ed25519.Verify(w.key, []byte(message), signature[8:])
}

func newWitness(vkey string) witness {
	parts := strings.SplitN(vkey, "+", 3)
	need(len(parts) == 3, "a witness's key reads name+id+base64")
	key, err := base64.StdEncoding.DecodeString(parts[2])
	check(err)
	need(len(key) == 1+ed25519.PublicKeySize && key[0] == 4, "no key of a witness")
	hash := sha256.Sum256(append([]byte(parts[0]+"\n"), key...))
	need(hex.EncodeToString(hash[:4]) == parts[1], "the witness's key is damaged")
	return witness{parts[0], binary.BigEndian.Uint32(hash[:4]), key[1:]}
}

func verifiers(file string) (known []note.Verifier) {
	for _, line := range strings.Fields(read(file)) {
		verifier, err := note.NewVerifier(line)
		check(err)
		known = append(known, verifier)
	}
	return known
}

// The tree that a checkpoint names, when every one of the keys' owners has signed who must.
func open(text string, log []note.Verifier, witnesses ...note.Verifier) tlog.Tree {
	opened, err := note.Open([]byte(text), note.VerifierList(append(log, witnesses...)...))
	check(err)
	signed := func(one note.Verifier) bool {
		for _, signature := range opened.Sigs {
			if signature.Name == one.Name() && signature.Hash == one.KeyHash() {
				return true
			}
		}
		return false
	}
	byLog := false
	for _, one := range log {
		byLog = byLog || signed(one)
	}
	need(byLog, "the log has not signed")
	for _, one := range witnesses {
		need(signed(one), "the witness has not cosigned")
	}
	lines := strings.Split(opened.Text, "\n")
	need(len(lines) == 4 && lines[3] == "", "a checkpoint has three lines")
	need(lines[0] == log[0].Name(), "of another log")
	size, err := strconv.ParseInt(lines[1], 10, 64)
	check(err)
	hash, err := tlog.ParseHash(lines[2])
	check(err)
	return tlog.Tree{N: size, Hash: hash}
}

// The lines of a proof and the checkpoint below them.
func proof(file string, head int) (lines []string, hashes []tlog.Hash, checkpoint string) {
	top, checkpoint, found := strings.Cut(read(file), "\n\n")
	need(found, "a proof has an empty line")
	lines = strings.Split(top, "\n")
	need(len(lines) >= head, "a proof is too short")
	for _, line := range lines[head:] {
		hash, err := tlog.ParseHash(line)
		check(err)
		hashes = append(hashes, hash)
	}
	return lines[:head], hashes, checkpoint
}

func number(line, word string) int64 {
	need(strings.HasPrefix(line, word+" "), "no line "+word)
	value, err := strconv.ParseInt(line[len(word)+1:], 10, 64)
	check(err)
	return value
}

type event struct {
	Position, Sequence int64
	Micros             int64  `json:"recorded_at_micros"`
	AggregateType      string `json:"aggregate_type"`
	AggregateId        string `json:"aggregate_id"`
	EventType          string `json:"event_type"`
	EventVersion       string `json:"event_version"`
	Payload, Metadata  string
}

// The canonical bytes, as the auditor's guide describes them.
func (e event) leaf() []byte {
	leaf := []byte{1}
	for _, value := range []int64{e.Position, e.Micros, e.Sequence} {
		leaf = binary.BigEndian.AppendUint64(leaf, uint64(value))
	}
	for _, text := range []string{e.AggregateType, e.AggregateId, e.EventType, e.EventVersion, e.Payload, e.Metadata} {
		leaf = binary.BigEndian.AppendUint32(leaf, uint32(len(text)))
		leaf = append(leaf, text...)
	}
	return leaf
}

type stored []tlog.Hash

func (s stored) ReadHashes(indexes []int64) (hashes []tlog.Hash, err error) {
	for _, index := range indexes {
		hashes = append(hashes, s[index])
	}
	return hashes, nil
}

func leaves(file string) tlog.Tree {
	opened, err := os.Open(file)
	check(err)
	lines := bufio.NewScanner(opened)
	lines.Buffer(nil, 64<<20)
	var hashes stored
	var count int64
	for lines.Scan() {
		var one event
		check(json.Unmarshal(lines.Bytes(), &one))
		need(one.Position == count+1, fmt.Sprintf("event %d stands where %d should", one.Position, count+1))
		more, err := tlog.StoredHashes(count, one.leaf(), hashes)
		check(err)
		hashes = append(hashes, more...)
		count++
	}
	check(lines.Err())
	root, err := tlog.TreeHash(count, hashes)
	check(err)
	return tlog.Tree{N: count, Hash: root}
}

func main() {
	need(len(os.Args) > 3, "verify KEYS checkpoint|inclusion|consistency|leaves …")
	log := verifiers(os.Args[1])
	need(len(log) > 0, "no keys")
	arguments := os.Args[3:]
	switch what := os.Args[2]; {
	case what == "checkpoint" && len(arguments) == 1:
		tree := open(read(arguments[0]), log)
		fmt.Println(tree.N, tree.Hash)
	case what == "checkpoint" && len(arguments) == 2:
		tree := open(read(arguments[0]), log, newWitness(arguments[1]))
		fmt.Println(tree.N, tree.Hash, "cosigned")
	case what == "inclusion" && len(arguments) == 2:
		head, hashes, checkpoint := proof(arguments[0], 2)
		need(head[0] == "c2sp.org/tlog-proof@v1", "no tlog-proof")
		leaf, err := hex.DecodeString(arguments[1])
		check(err)
		need(len(leaf) == tlog.HashSize, "a leaf hash has 32 bytes")
		tree, index := open(checkpoint, log), number(head[1], "index")
		check(tlog.CheckRecord(hashes, tree.N, tree.Hash, index, *(*tlog.Hash)(leaf)))
		fmt.Println("event", index+1, "is in the ledger of", tree.N)
	case what == "consistency" && len(arguments) == 2:
		head, hashes, checkpoint := proof(arguments[1], 1)
		old, new := open(read(arguments[0]), log), open(checkpoint, log)
		need(old.N == number(head[0], "old"), "the proof starts at another head")
		check(tlog.CheckTree(hashes, new.N, new.Hash, old.N, old.Hash))
		fmt.Println("the ledger of", new.N, "begins with that of", old.N)
	case what == "leaves" && len(arguments) == 2:
		signed, given := open(read(arguments[0]), log), leaves(arguments[1])
		need(signed == given, fmt.Sprintf("%d leaves do not give the signed head over %d", given.N, signed.N))
		fmt.Println(given.N, "leaves give the signed head")
	default:
		need(false, "verify KEYS checkpoint|inclusion|consistency|leaves …")
	}
}

func read(file string) string {
	text, err := os.ReadFile(file)
	check(err)
	return string(text)
}

func check(err error) {
	if err != nil {
		need(false, err.Error())
	}
}

func need(holds bool, message string) {
	if !holds {
		fmt.Fprintln(os.Stderr, "NOT verified:", message)
		os.Exit(1)
	}
}
