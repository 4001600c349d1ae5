//! A call as kubelets before Kubernetes 1.26 send it, byte by byte: the server's name is the path of its socket.

use std::path::Path;
use std::sync::Arc;

use csi::identity::IdentityService;
use csi::server::listen;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// RFC 9113, section 6: frames of a server's answer.
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.push(u8::try_from(text.len()).expect("short"));
    bytes.extend_from_slice(text.as_bytes());
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, u8::try_from(payload.len()).expect("short"), kind, flags, 0, 0, 0, stream];
    bytes.extend_from_slice(payload);
    bytes
}

/// Calls Probe, and returns the kind of the first frame that answers it.
async fn answer(socket: &Path, authority: &str) -> std::io::Result<u8> {
    // POST, http; then path, authority, content type, te.
    let mut fields = vec![0x83, 0x86, 0x45];
    text(&mut fields, "/csi.v1.Identity/Probe");
    fields.push(0x41);
    text(&mut fields, authority);
    fields.push(0x5f);
    text(&mut fields, "application/grpc");
    fields.push(0x40);
    text(&mut fields, "te");
    text(&mut fields, "trailers");
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(frame(HEADERS, 0x4, 1, &fields));
    // A message without fields, and the end of the call.
    bytes.extend(frame(0, 0x1, 1, &[0; 5]));
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(&bytes).await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut payload).await?;
        if [HEADERS, RST_STREAM, GOAWAY].contains(&head[3]) {
            return Ok(head[3]);
        }
    }
}

#[tokio::test]
async fn a_kubelet_that_names_us_by_our_socket_is_answered() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("csi.sock");
    let connections = listen(&socket).expect("a socket");
    let server = tonic::transport::Server::builder()
        .add_service(IdentityService::server(Arc::new(|| Box::pin(std::future::ready(true)))))
        .serve_with_incoming(connections);
    let server = tokio::spawn(server);
    for authority in
        ["localhost", "/var/lib/kubelet/plugins/io.openebs.csi-mayastor/csi.sock", "%2Fcsi%2Fcsi.sock"]
    {
        let kind = answer(&socket, authority).await.expect("an answer");
        assert_eq!(kind, HEADERS, "{authority}");
    }
    server.abort();
}
