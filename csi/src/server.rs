//! The unix sockets that calls come in by.

use std::io;
use std::path::Path;

use tokio::net::UnixListener;

/// Listens on a socket. One that a process that was killed left there is taken away: nobody can listen on it again.
pub fn listen(socket: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(socket)
}
