//! The content of a test block: says where it belongs and which write made it, in every byte.

/// The unit of test I/O, in bytes: the block size of file systems and of our devices.
pub const BLOCK_BYTES: usize = 4096;

const WORDS: usize = BLOCK_BYTES / 8;

/// Which write made a block: the `generation`-th one to block `number` of the run that `seed` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub seed: u64,
    pub number: u64,
    pub generation: u64,
}

impl Origin {
    /// Fills a block: seed, number, generation, and then words that follow from all three.
    pub fn fill(self, block: &mut [u8]) {
        assert_eq!(block.len(), BLOCK_BYTES);
        let mut words = self.words();
        for bytes in block.chunks_exact_mut(8) {
            bytes.copy_from_slice(&words.next().unwrap_or_default().to_le_bytes());
        }
    }

    /// Says what is wrong with a block that this write, and no other, should have made.
    pub fn check(self, block: &[u8]) -> Result<(), String> {
        assert_eq!(block.len(), BLOCK_BYTES);
        let found: Vec<u64> = block
            .chunks_exact(8)
            .map(|bytes| u64::from_le_bytes(bytes.try_into().expect("chunks of eight bytes")))
            .collect();
        let Some(word) = found.iter().zip(self.words()).position(|(found, expected)| *found != expected)
        else {
            return Ok(());
        };
        let wanted = format!("block {} should hold its write {}", self.number, self.generation);
        if found.iter().all(|word| *word == 0) {
            return Err(format!("{wanted} and holds zeros"));
        }
        if word > 2 || found[0] != self.seed {
            return Err(format!("{wanted} and differs from byte {} on", word * 8));
        }
        Err(format!("{wanted} and holds write {} of block {}", found[2], found[1]))
    }

    fn words(self) -> impl Iterator<Item = u64> {
        let mut state = self.seed ^ self.number.rotate_left(24) ^ self.generation.rotate_left(48);
        [self.seed, self.number, self.generation]
            .into_iter()
            .chain(std::iter::repeat_with(move || split_mix(&mut state)))
            .take(WORDS)
    }
}

/// The next number of a SplitMix64 sequence: a few operations each, which matters in an emulated guest.
/// (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014, figure 17.)
pub fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin = Origin { seed: 1, number: 2, generation: 3 };

    fn block(origin: Origin) -> Vec<u8> {
        let mut block = vec![0; BLOCK_BYTES];
        origin.fill(&mut block);
        block
    }

    /// A lost write, a misdirected one, a torn one and a hole are different defects; the report must tell them apart.
    #[test]
    fn a_check_says_what_a_wrong_block_holds() {
        assert_eq!(ORIGIN.check(&block(ORIGIN)), Ok(()));
        let older = ORIGIN.check(&block(Origin { generation: 2, ..ORIGIN })).unwrap_err();
        assert!(older.contains("holds write 2 of block 2"), "{older}");
        let elsewhere = ORIGIN.check(&block(Origin { number: 9, ..ORIGIN })).unwrap_err();
        assert!(elsewhere.contains("holds write 3 of block 9"), "{elsewhere}");
        let hole = ORIGIN.check(&[0; BLOCK_BYTES]).unwrap_err();
        assert!(hole.contains("holds zeros"), "{hole}");
        let mut torn = block(ORIGIN);
        torn[512..].copy_from_slice(&block(Origin { generation: 2, ..ORIGIN })[512..]);
        let torn = ORIGIN.check(&torn).unwrap_err();
        assert!(torn.contains("differs from byte 512 on"), "{torn}");
    }
}
