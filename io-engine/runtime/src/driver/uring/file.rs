//! Files and block devices on the ring.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;

use io_uring::opcode;
use io_uring::types::FsyncFlags;

use super::{Uring, checked, ring_fd};
use crate::buffer::{IoBuf, IoBytes};
use crate::driver::op::{Fd, Held, Op};
use crate::file::{FileMeta, OpenOptions, WriteFlags};

/// The most bytes of one request: the length fields are 32 bits wide, and Linux transfers less than 2 GiB at once.
const REQUEST_MAX: u32 = 1 << 30;
/// The size of the buffer of zeroes where the kernel has no cheaper way.
const ZEROES_MAX: usize = 1 << 20;

/// See [`crate::File`].
pub(crate) struct UringFile {
    driver: Rc<Uring>,
    fd: Fd,
    is_block_device: bool,
}

impl UringFile {
    pub(crate) fn open(driver: &Rc<Uring>, path: &Path, options: OpenOptions) -> io::Result<Self> {
        let is_block_device = fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
        let mut flags = 0;
        if options.direct {
            flags |= libc::O_DIRECT;
        }
        if options.exclusive_lock && is_block_device {
            // Without O_CREAT this claims the device: refused while it is mounted or claimed under another name.
            flags |= libc::O_EXCL;
        }
        let file = fs::OpenOptions::new()
            .read(true)
            .write(!options.read_only)
            .create(options.create && !options.read_only && !is_block_device)
            .custom_flags(flags)
            .open(path)?;
        if options.exclusive_lock {
            file.try_lock().map_err(io::Error::from)?;
        }
        Ok(Self { driver: Rc::clone(driver), fd: Rc::new(file.into()), is_block_device })
    }

    fn read(&self, mut buf: IoBuf, done: usize, offset: u64) -> Op {
        let part = &mut buf[done..];
        let len = request_len(part.len());
        let entry = opcode::Read::new(ring_fd(&self.fd), part.as_mut_ptr(), len).offset(offset).build();
        // SAFETY: the entry points to `len` writable bytes of the buffer, whose memory is on the heap and goes along.
        unsafe { self.driver.submit(entry, Held::Buf { _fd: Rc::clone(&self.fd), buf }) }
    }

    pub(crate) async fn read_at(&self, mut buf: IoBuf, offset: u64) -> (io::Result<()>, IoBuf) {
        let mut done = 0;
        while done < buf.len() {
            let (result, held) = self.read(buf, done, offset + done as u64).await;
            buf = held.into_buf();
            match checked(result) {
                Ok(0) => return (Err(io::ErrorKind::UnexpectedEof.into()), buf),
                Ok(count) => done += count,
                Err(error) if is_transient(&error) => {}
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(()), buf)
    }

    fn write(&self, data: IoBytes, offset: u64, flags: WriteFlags) -> Op {
        let len = request_len(data.len());
        let rw_flags = if flags.dsync { libc::RWF_DSYNC } else { 0 };
        let entry = opcode::Write::new(ring_fd(&self.fd), data.as_ptr(), len)
            .offset(offset)
            .rw_flags(rw_flags)
            .build();
        // SAFETY: the entry points to `len` bytes that nobody may write into, and that go along.
        unsafe { self.driver.submit(entry, Held::Bytes { _fd: Rc::clone(&self.fd), _bytes: data }) }
    }

    pub(crate) async fn write_at(&self, data: IoBytes, offset: u64, flags: WriteFlags) -> io::Result<()> {
        let mut done = 0;
        while done < data.len() {
            let rest = data.slice(done..data.len());
            match checked(self.write(rest, offset + done as u64, flags).await.0) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(crate) async fn flush(&self) -> io::Result<()> {
        loop {
            let entry = opcode::Fsync::new(ring_fd(&self.fd)).flags(FsyncFlags::DATASYNC).build();
            // SAFETY: the entry points to nothing; the descriptor goes along.
            let flush = unsafe { self.driver.submit(entry, Held::Fd { _fd: Rc::clone(&self.fd) }) };
            match checked(flush.await.0) {
                Err(error) if is_transient(&error) => {}
                result => return result.map(|_| ()),
            }
        }
    }

    async fn fallocate(&self, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        loop {
            let entry = opcode::Fallocate::new(ring_fd(&self.fd), len).offset(offset).mode(mode).build();
            // SAFETY: the entry points to nothing; the descriptor goes along.
            let change = unsafe { self.driver.submit(entry, Held::Fd { _fd: Rc::clone(&self.fd) }) };
            match checked(change.await.0) {
                Err(error) if is_transient(&error) => {}
                result => return result.map(|_| ()),
            }
        }
    }

    pub(crate) async fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        // On a block device the kernel discards where the device promises zeroes for it, and refuses elsewhere.
        match self.fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len).await {
            Err(error) if is_unsupported(&error) => self.write_zeroes(offset, len).await,
            result => result,
        }
    }

    pub(crate) async fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        match self.fallocate(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE, offset, len).await {
            Err(error) if is_unsupported(&error) => self.write_buffers_of_zeroes(offset, len).await,
            result => result,
        }
    }

    async fn write_buffers_of_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let part_of = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(ZEROES_MAX);
        let zeroes = IoBuf::zeroed(part_of(len)).freeze();
        let mut done = 0;
        while done < len {
            let part = part_of(len - done);
            self.write_at(zeroes.slice(0..part), offset + done, WriteFlags::default()).await?;
            done += part as u64;
        }
        Ok(())
    }

    pub(crate) fn set_len(&self, len: u64) -> io::Result<()> {
        Ok(rustix::fs::ftruncate(self.fd.as_fd(), len)?)
    }

    pub(crate) fn metadata(&self) -> io::Result<FileMeta> {
        let fd = self.fd.as_fd();
        let (len_bytes, logical_block_bytes) = if self.is_block_device {
            // A block device's length is where its end is; the position itself is used by nobody.
            (rustix::fs::seek(fd, rustix::fs::SeekFrom::End(0))?, rustix::fs::ioctl_blksszget(fd)?)
        } else {
            let found = rustix::fs::fstat(fd)?;
            let len = u64::try_from(found.st_size).map_err(|_| io::ErrorKind::InvalidData)?;
            (len, direct_io_unit(&self.fd))
        };
        Ok(FileMeta { len_bytes, logical_block_bytes, is_block_device: self.is_block_device })
    }
}

/// The unit in which a regular file takes direct I/O: what the file system tells (Linux 6.1), else a sector.
fn direct_io_unit(fd: &Fd) -> u32 {
    use std::os::fd::AsRawFd;
    // SAFETY: all-zero bytes are a valid statx; it is plain integers.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a terminated empty string, so the call is about the descriptor, and `found` is writable.
    let result = unsafe {
        libc::statx(fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &raw mut found)
    };
    let is_told = result == 0 && found.stx_mask & libc::STATX_DIOALIGN != 0;
    if is_told && found.stx_dio_offset_align != 0 { found.stx_dio_offset_align } else { 512 }
}

/// The length of the next request for so many bytes.
fn request_len(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX).min(REQUEST_MAX)
}

/// Errors after which the same request is simply made again.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN))
}

/// The file system or device does not know the operation.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENODEV | libc::ENOSYS))
}
