//! Arbitrary bytes, cut anywhere, neither panic nor pass a limit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nvme::framing::{Framer, Limits, Piece, Reader};
use nvme::pdu::Digests;

fuzz_target!(|data: &[u8]| {
    let [mode, stream @ ..] = data else { return };
    let reader = if mode & 1 == 0 { Reader::Controller } else { Reader::Host };
    let limits = Limits { capsule_data_max: 8192, data_max: 65_536 };
    let mut framer = Framer::new(reader, limits);
    framer.set_digests(Digests { header: mode & 2 != 0, data: mode & 4 != 0 });
    let step = usize::from(mode >> 3) + 1;
    for mut chunk in stream.chunks(step) {
        while let Ok(Some(piece)) = framer.next(&mut chunk) {
            if let Piece::Pdu { data_len, .. } = piece {
                assert!(data_len <= 65_536);
            }
        }
    }
});
