//! The unix sockets that calls come in by.

use std::io;
use std::path::Path;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt as _};

mod authority;

pub use authority::Palatable;

/// Listens on a socket. One that a process that was killed left there is taken away: nobody can listen on it again.
///
/// Calls of old kubelets, which our HTTP/2 would refuse, are mended on their way in.
pub fn listen(socket: &Path) -> io::Result<impl Stream<Item = io::Result<Palatable>> + Send + use<>> {
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let connections = UnixListenerStream::new(UnixListener::bind(socket)?);
    Ok(connections.map(|connection| connection.map(Palatable::new)))
}
