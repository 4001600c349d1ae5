//! The kernel's log, from now on: it tells of a lost path within milliseconds, and counts the host's attempts.

use std::fs::OpenOptions;
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use csi::host::text::{KernelWord, parse_kernel_log};
use tokio::net::unix::pipe::Receiver;

/// Longer than a record can be.
const RECORD_BYTES: usize = 8192;
/// EPIPE: records were overwritten before we read them.
const OVERWRITTEN: i32 = 32;

/// A reader of /dev/kmsg.
#[derive(Debug)]
pub struct KernelLog {
    /// The runtime's type for pipes: it asks of a file only that it can be polled, which the log can.
    file: Receiver,
}

impl KernelLog {
    /// Opens it; what was said before is skipped. Must be called on a tokio runtime.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        match file.seek(SeekFrom::End(0)) {
            Ok(_) => {}
            // A pipe, in tests, has no past.
            Err(error) if error.raw_os_error() == Some(libc::ESPIPE) => {}
            Err(error) => return Err(error),
        }
        Ok(Self { file: Receiver::from_file_unchecked(file)? })
    }

    /// The next word about a controller. Cancel safe: a record is read whole or not at all.
    pub async fn next(&mut self) -> io::Result<KernelWord> {
        let mut record = [0; RECORD_BYTES];
        loop {
            self.file.readable().await?;
            match self.file.try_read(&mut record) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    if let Some(word) = parse_kernel_log(&String::from_utf8_lossy(&record[..length])) {
                        return Ok(word);
                    }
                }
                Err(error) if error.raw_os_error() == Some(OVERWRITTEN) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}
