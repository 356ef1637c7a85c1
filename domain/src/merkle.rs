//! Merkle trees over leaf hashes (RFC 6962 §2.1): heads, proofs, and what it takes to check them.
//!
//! Nothing here holds a whole tree. [`Frontier`] grows one leaf at a time and keeps a hash a level; a
//! prover asks which complete subtrees a head or a proof is made of ([`cover`], [`inclusion_ranges`],
//! [`consistency_ranges`]), gets their hashes from wherever they are kept, and folds them
//! ([`join`]). Leaf numbers begin at 0, so the event at position `n` is leaf `n - 1`.

use std::ops::Range;

use sha2::{Digest, Sha256};

/// SHA-256, as all hashes of the tree.
pub type Hash = [u8; 32];

/// A complete subtree: the leaves from `index << height`, `1 << height` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Node {
    /// 0 for a leaf.
    pub height: u32,
    /// Its number among those of its height, from 0.
    pub index: u64,
}

/// The head of a tree without leaves.
#[must_use]
pub fn empty_root() -> Hash {
    Sha256::digest([]).into()
}

/// The hash of an inner node: SHA-256 over a one byte and both children.
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new_with_prefix([1u8]).chain_update(left).chain_update(right).finalize().into()
}

/// The complete subtrees that the leaves of a range fall into, left to right. Their [`join`] is the
/// hash of the range where RFC 6962 gives it one: it begins at the left edge of the subtree it is in.
#[must_use]
pub fn cover(range: Range<u64>) -> Vec<Node> {
    let (mut start, mut nodes) = (range.start, Vec::new());
    while start < range.end {
        let height = start.trailing_zeros().min((range.end - start).ilog2());
        nodes.push(Node { height, index: start >> height });
        start += 1 << height;
    }
    nodes
}

/// The hash over neighbouring subtrees that [`cover`] named; the empty tree's where there are none.
#[must_use]
pub fn join(hashes: &[Hash]) -> Hash {
    let mut right_to_left = hashes.iter().rev();
    let Some(last) = right_to_left.next() else { return empty_root() };
    right_to_left.fold(*last, |right, left| node_hash(left, &right))
}

/// The hash over as many neighbouring subtrees of one height as a power of two; `None` for any other
/// number of them.
#[must_use]
pub fn fold(hashes: &[Hash]) -> Option<Hash> {
    if !hashes.len().is_power_of_two() {
        return None;
    }
    let mut level = hashes.to_vec();
    while level.len() > 1 {
        level = level.as_chunks::<2>().0.iter().map(|[left, right]| node_hash(left, right)).collect();
    }
    level.first().copied()
}

/// The ranges of leaves whose hashes prove that leaf `index` is in the tree of `size` leaves, from the
/// leaf's sibling up (RFC 6962 §2.1.1). `None` when there is no such leaf.
#[must_use]
pub fn inclusion_ranges(index: u64, size: u64) -> Option<Vec<Range<u64>>> {
    if index >= size {
        return None;
    }
    let (mut inside, mut path) = (0..size, Vec::new());
    while inside.end - inside.start > 1 {
        let middle = inside.start + split(inside.end - inside.start);
        let (left, right) = (inside.start..middle, middle..inside.end);
        let (taken, sibling) = if index < middle { (left, right) } else { (right, left) };
        path.push(sibling);
        inside = taken;
    }
    path.reverse();
    Some(path)
}

/// The ranges of leaves whose hashes prove that the tree of `new` leaves begins with that of `old`
/// (RFC 6962 §2.1.2). Empty when `old` is 0 or `new`; `None` when it is larger.
#[must_use]
pub fn consistency_ranges(old: u64, new: u64) -> Option<Vec<Range<u64>>> {
    if old > new {
        return None;
    }
    if old == 0 || old == new {
        return Some(Vec::new());
    }
    let (mut inside, mut path) = (0..new, Vec::new());
    while old < inside.end {
        let middle = inside.start + split(inside.end - inside.start);
        if old <= middle {
            path.push(middle..inside.end);
            inside.end = middle;
        } else {
            path.push(inside.start..middle);
            inside.start = middle;
        }
    }
    // A subtree that begins at the first leaf is the old tree itself, whose head the verifier has.
    if inside.start > 0 {
        path.push(inside);
    }
    path.reverse();
    Some(path)
}

/// The largest power of two below a number of leaves, of which there are at least two.
fn split(leaves: u64) -> u64 {
    1 << (leaves - 1).ilog2()
}

/// Whether a proof shows a leaf in a tree (RFC 9162 §2.1.3.2). Any input is safe.
#[must_use]
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, proof: &[Hash], root: &Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut place, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in proof {
        if last == 0 {
            return false;
        }
        if place & 1 == 1 || place == last {
            hash = node_hash(sibling, &hash);
            climb(&mut place, &mut last);
        } else {
            hash = node_hash(&hash, sibling);
        }
        (place, last) = (place >> 1, last >> 1);
    }
    last == 0 && hash == *root
}

/// Whether a proof shows that the later tree begins with the earlier one (RFC 9162 §2.1.4.2; from
/// the empty tree only the empty proof). Any input is safe.
#[must_use]
pub fn verify_consistency(old: u64, old_root: &Hash, new: u64, new_root: &Hash, proof: &[Hash]) -> bool {
    if old == 0 || old >= new {
        let start = if old == 0 { *old_root == empty_root() } else { old == new };
        return start && proof.is_empty() && (old != new || old_root == new_root);
    }
    let mut path = proof.iter();
    let first = if old.is_power_of_two() { Some(old_root) } else { path.next() };
    let Some(first) = first.filter(|_| !proof.is_empty()) else { return false };
    let (mut place, mut last) = (old - 1, new - 1);
    while place & 1 == 1 {
        (place, last) = (place >> 1, last >> 1);
    }
    let (mut before, mut after) = (*first, *first);
    for sibling in path {
        if last == 0 {
            return false;
        }
        if place & 1 == 1 || place == last {
            before = node_hash(sibling, &before);
            after = node_hash(sibling, &after);
            climb(&mut place, &mut last);
        } else {
            after = node_hash(&after, sibling);
        }
        (place, last) = (place >> 1, last >> 1);
    }
    last == 0 && before == *old_root && after == *new_root
}

/// A node at the right edge may have no sibling on some levels: up to where it is a right child.
fn climb(place: &mut u64, last: &mut u64) {
    while *place & 1 == 0 && *place != 0 {
        (*place, *last) = (*place >> 1, *last >> 1);
    }
}

/// A tree that grows at its right edge: one hash for each complete subtree of [`cover`]`(0..size)`.
#[derive(Clone, Debug, Default)]
pub struct Frontier {
    size: u64,
    hashes: Vec<Hash>,
}

impl Frontier {
    /// Goes on behind `size` leaves, from the hashes of [`cover`]`(0..size)`; `None` when there is another
    /// number of them.
    #[must_use]
    pub fn resume(size: u64, hashes: Vec<Hash>) -> Option<Self> {
        (hashes.len() == size.count_ones() as usize).then_some(Self { size, hashes })
    }

    /// Adds the next leaf by its leaf hash.
    pub fn push(&mut self, leaf: Hash) {
        self.push_telling(leaf, |_, _| {});
    }

    /// The same, and tells every subtree of more than one leaf that is complete now, from below.
    pub fn push_telling(&mut self, leaf: Hash, mut complete: impl FnMut(Node, &Hash)) {
        let mut hash = leaf;
        for height in 1..=self.size.trailing_ones() {
            if let Some(left) = self.hashes.pop() {
                hash = node_hash(&left, &hash);
                complete(Node { height, index: self.size >> height }, &hash);
            }
        }
        self.hashes.push(hash);
        self.size += 1;
    }

    /// The tree of `size` leaves whose complete subtrees ([`cover`]`(0..size)`) have these hashes; `None`
    /// when it is made of another number of them.
    #[must_use]
    pub fn of(size: u64, subtrees: Vec<Hash>) -> Option<Self> {
        (u64::from(size.count_ones()) == subtrees.len() as u64).then_some(Self { size, hashes: subtrees })
    }

    /// The hashes of its complete subtrees, left to right: all that is needed to go on from here.
    #[must_use]
    pub fn subtrees(&self) -> &[Hash] {
        &self.hashes
    }

    /// Leaves so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The tree head.
    #[must_use]
    pub fn root(&self) -> Hash {
        join(&self.hashes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 6962 §2.1 word by word.
    fn naive(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => empty_root(),
            [leaf] => *leaf,
            leaves => {
                let (left, right) = leaves.split_at(split(leaves.len() as u64) as usize);
                node_hash(&naive(left), &naive(right))
            }
        }
    }

    fn leaf(number: u64) -> Hash {
        Sha256::new_with_prefix([0u8]).chain_update(number.to_be_bytes()).finalize().into()
    }

    fn leaves(count: u64) -> Vec<Hash> {
        (0..count).map(leaf).collect()
    }

    fn proof(leaves: &[Hash], ranges: Vec<Range<u64>>) -> Vec<Hash> {
        let of = |range: Range<u64>| naive(&leaves[range.start as usize..range.end as usize]);
        ranges.into_iter().map(of).collect()
    }

    fn hash(hex: &str) -> Hash {
        std::array::from_fn(|at| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).unwrap())
    }

    /// The leaves of the test data that came with the first implementations of RFC 6962.
    fn published() -> Vec<Hash> {
        let data: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        data.map(|data| Sha256::new_with_prefix([0u8]).chain_update(data).finalize().into()).to_vec()
    }

    #[test]
    fn heads_are_the_published_ones() {
        let roots = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        assert_eq!(
            Frontier::default().root(),
            hash("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
        );
        let mut tree = Frontier::default();
        for (leaf, root) in published().into_iter().zip(roots) {
            tree.push(leaf);
            assert_eq!(tree.root(), hash(root), "{} leaves", tree.size());
        }
    }

    #[test]
    fn proofs_are_the_published_ones() {
        let leaves = published();
        let shared = [
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ];
        let inclusion = proof(&leaves, inclusion_ranges(5, 8).unwrap());
        let sibling = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b";
        assert_eq!(inclusion, [sibling, shared[0], shared[1]].map(hash));
        let consistency = proof(&leaves, consistency_ranges(6, 8).unwrap());
        let sibling = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a";
        assert_eq!(consistency, [sibling, shared[0], shared[1]].map(hash));
    }

    #[test]
    fn every_proof_of_every_small_tree_verifies_and_only_there() {
        for size in 1..=34 {
            let leaves = leaves(size);
            let root = naive(&leaves);
            for index in 0..size {
                let proof = proof(&leaves, inclusion_ranges(index, size).unwrap());
                for place in 0..=size {
                    let here = verify_inclusion(&leaves[index as usize], place, size, &proof, &root);
                    assert_eq!(here, place == index, "leaf {index} of {size} at {place}");
                }
            }
            for old in 0..=size {
                let before = naive(&leaves[..old as usize]);
                let proof = proof(&leaves, consistency_ranges(old, size).unwrap());
                assert!(verify_consistency(old, &before, size, &root, &proof), "{old} to {size}");
                let other = leaf(size + 1);
                assert!(!verify_consistency(old, &other, size, &root, &proof), "{old} to {size}");
                assert!(old == 0 || !verify_consistency(old, &before, size, &other, &proof));
                assert!(old == size || !verify_consistency(size, &root, old, &before, &proof));
            }
        }
    }

    #[test]
    fn the_largest_trees_have_proofs_too() {
        let size = u64::MAX;
        assert_eq!(inclusion_ranges(0, size).unwrap().len(), 64);
        assert_eq!(inclusion_ranges(size, size), None);
        assert!(consistency_ranges(1 << 63, size).unwrap().len() <= 64);
        assert!(!verify_inclusion(&leaf(0), size - 1, size, &leaves(64), &leaf(1)));
        assert!(!verify_consistency(size - 1, &leaf(0), size, &leaf(1), &leaves(64)));
    }

    proptest! {
        #[test]
        fn growing_equals_the_definition(count in 0u64..600) {
            let leaves = leaves(count);
            let mut tree = Frontier::default();
            leaves.iter().for_each(|leaf| tree.push(*leaf));
            prop_assert_eq!((tree.size(), tree.root()), (count, naive(&leaves)));
        }

        #[test]
        fn a_tree_goes_on_from_its_subtrees_and_tells_those_it_completes(start in 0u64..300, more in 0u64..300) {
            let leaves = leaves(start + more);
            let of = |node: Node| {
                let first = (node.index << node.height) as usize;
                fold(&leaves[first..first + (1 << node.height)]).unwrap()
            };
            let hashes = cover(0..start).into_iter().map(of).collect();
            let mut tree = Frontier::resume(start, hashes).unwrap();
            let mut told = Vec::new();
            leaves[start as usize..].iter().for_each(|leaf| {
                tree.push_telling(*leaf, |node, hash| told.push((node, *hash)));
            });
            prop_assert_eq!((tree.size(), tree.root()), (start + more, naive(&leaves)));
            prop_assert!(told.iter().all(|(node, hash)| of(*node) == *hash));
            let complete = |size: u64| (1..64).map(|height| size >> height).sum::<u64>();
            prop_assert_eq!(told.len() as u64, complete(start + more) - complete(start));
        }

        #[test]
        fn subtrees_join_to_the_hash_of_every_range_of_a_proof(size in 1u64..600, at in any::<prop::sample::Index>()) {
            let leaves = leaves(size);
            let index = at.index(size as usize) as u64;
            let ranges = inclusion_ranges(index, size).unwrap().into_iter()
                .chain(consistency_ranges(index, size).unwrap());
            for range in ranges.chain(std::iter::once(0..size)) {
                let hashes: Vec<Hash> = cover(range.clone()).into_iter().map(|node| {
                    let start = (node.index << node.height) as usize;
                    fold(&leaves[start..start + (1 << node.height)]).unwrap()
                }).collect();
                prop_assert_eq!(join(&hashes), naive(&leaves[range.start as usize..range.end as usize]));
            }
        }

        #[test]
        fn a_changed_leaf_or_proof_is_refused(size in 2u64..300, at in any::<prop::sample::Index>(), which in any::<prop::sample::Index>(), bit in 0usize..256) {
            let leaves = leaves(size);
            let root = naive(&leaves);
            let index = at.index(size as usize);
            let mut path = proof(&leaves, inclusion_ranges(index as u64, size).unwrap());
            let mut changed = leaves[index];
            changed[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!verify_inclusion(&changed, index as u64, size, &path, &root));
            let place = which.index(path.len());
            path[place][bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!verify_inclusion(&leaves[index], index as u64, size, &path, &root));
        }

        #[test]
        fn no_input_makes_the_checks_panic(a: u64, b: u64, count in 0u64..70) {
            let proof = leaves(count);
            let _ = verify_inclusion(&leaf(a), a, b, &proof, &leaf(b));
            let _ = verify_consistency(a, &leaf(a), b, &leaf(b), &proof);
            let _ = (inclusion_ranges(a, b), consistency_ranges(a, b), cover(0..b));
        }
    }
}
